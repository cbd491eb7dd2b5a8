//! The script of a forced stop, with real processes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::fencing::Stopped;
use agent::io::forced_stop::{AWS_BUILT_IN, ForcedStopDriver, ScriptFault, Servers, StopError};
use nbd_frontend::config::agent::{AwsAction, ForcedStop, ForcedStopKind};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(20);

fn config(kind: ForcedStopKind, timeout: Duration) -> ForcedStop {
    ForcedStop {
        kind,
        timeout,
        retries: 0,
        stop_wait: LONG,
        fence_delay: Duration::ZERO,
        check_interval: LONG,
        failover_on_failure: false,
    }
}

fn servers() -> Servers {
    Servers {
        cluster: "bakery".into(),
        nodes: ["oven".into(), "counter".into()],
        local: 1,
    }
}

fn driver(script: &Path, timeout: Duration) -> ForcedStopDriver {
    let kind = ForcedStopKind::Custom {
        script: script.into(),
    };
    ForcedStopDriver::new(&config(kind, timeout), servers()).unwrap()
}

/// Another process writes the file: one that this process had open for writing could not be started
/// while a test beside this one forks.
fn write_script(folder: &Path, mode: &str, text: &str) -> PathBuf {
    let path = folder.join("stop.sh");
    let mut install = Command::new("install")
        .args(["-m", mode, "/dev/stdin"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = install.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert!(install.wait().unwrap().success());
    path
}

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The number that a script wrote of a child of its own.
fn pid_in(file: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    text.strip_suffix('\n')?.parse().ok().map(Pid::from_raw)
}

/// A zombie that nobody has waited for yet runs no more.
fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    kill(pid, None).is_ok() && !matches!(state, Some('Z' | 'X') | None)
}

#[tokio::test]
async fn a_script_is_told_whom_to_stop_and_its_exit_code_0_confirms() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\n\
         test \"$(pwd)\" = / || exit 1\n\
         cd \"$(dirname \"$0\")\"\n\
         echo $MIRROR_CLUSTER $MIRROR_DOWN_SERVER $MIRROR_LOCAL_SERVER > $MIRROR_MODE\n",
    );
    let driver = driver(&script, LONG);
    driver.check(0).await.unwrap();
    assert_eq!(driver.stop(0).await.unwrap(), Stopped::Confirmed);
    for mode in ["check", "stop"] {
        let told = std::fs::read_to_string(folder.path().join(mode)).unwrap();
        assert_eq!(told, "bakery oven counter\n");
    }
}

#[tokio::test]
async fn a_script_that_fails_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\necho no power switch >&2\nexit 7\n",
    );
    let error = driver(&script, LONG).stop(0).await.unwrap_err();
    assert!(matches!(error, StopError::ScriptFailed { .. }), "{error:?}");
    let message = error.to_string();
    for part in ["stop.sh", "exit code 7", "mode stop", "no power switch"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_script_that_hangs_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\n\
         echo switching off\n\
         sleep 600 &\n\
         echo $! > \"$(dirname \"$0\")/child\"\n\
         wait\n",
    );
    let began = Instant::now();
    let error = driver(&script, Duration::from_secs(5))
        .stop(0)
        .await
        .unwrap_err();
    assert!(began.elapsed() < LONG);
    assert!(
        matches!(error, StopError::ScriptTimedOut { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("switching off"), "{error}");
    let child = pid_in(&folder.path().join("child")).expect("the script started its child");
    wait_until("the child ends", || !runs(child)).await;
}

#[tokio::test]
async fn what_a_finished_script_left_behind_is_killed_and_its_answer_counts() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\nsleep 600 &\necho $! > \"$(dirname \"$0\")/child\"\n",
    );
    let stopped = driver(&script, LONG).stop(0).await.unwrap();
    assert_eq!(stopped, Stopped::Confirmed);
    let child = pid_in(&folder.path().join("child")).unwrap();
    wait_until("the child ends", || !runs(child)).await;
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_process_behind() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\nsleep 600 &\necho $! > \"$(dirname \"$0\")/child\"\nwait\n",
    );
    let driver = driver(&script, LONG);
    let file = folder.path().join("child");
    tokio::select! {
        result = driver.stop(0) => panic!("{result:?}"),
        () = wait_until("the script starts its child", || pid_in(&file).is_some()) => {}
    }
    let child = pid_in(&file).unwrap();
    wait_until("the child ends", || !runs(child)).await;
}

#[tokio::test]
async fn a_script_that_says_more_than_a_pipe_holds_is_not_blocked() {
    let folder = tempfile::tempdir().unwrap();
    let script = write_script(
        folder.path(),
        "755",
        "#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x\nexit 3\n",
    );
    let error = driver(&script, LONG).check(0).await.unwrap_err();
    assert!(matches!(error, StopError::ScriptFailed { .. }), "{error:?}");
    assert!(error.to_string().len() < 2000);
}

#[tokio::test]
async fn a_script_that_cannot_be_started_is_named_with_what_is_wrong() {
    async fn check(text: Option<(&str, &str)>, fault: ScriptFault) {
        let folder = tempfile::tempdir().unwrap();
        let script = match text {
            Some((mode, text)) => write_script(folder.path(), mode, text),
            None => folder.path().join("stop.sh"),
        };
        let error = driver(&script, LONG).check(0).await.unwrap_err();
        let found = match &error {
            StopError::Script { fault, .. } => *fault,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, fault);
        assert!(error.to_string().contains("stop.sh"), "{error}");
    }
    check(None, ScriptFault::Missing).await;
    check(Some(("644", "#!/bin/sh\n")), ScriptFault::NotExecutable).await;
    check(
        Some(("755", "#!/no/such/interpreter\n")),
        ScriptFault::NoInterpreter,
    )
    .await;
}

#[test]
fn a_cloud_that_is_not_built_in_is_refused_with_what_to_do() {
    let kind = ForcedStopKind::Aws {
        instances: ["i-1".into(), "i-2".into()],
        action: AwsAction::Stop,
        region: None,
        endpoint: None,
        profile: None,
    };
    let driver = ForcedStopDriver::new(&config(kind, LONG), servers());
    assert_eq!(driver.is_ok(), AWS_BUILT_IN);
    if let Err(error) = driver {
        assert!(
            error
                .to_string()
                .contains("-p agent -p mirrorctl --features agent/aws"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_script_that_others_may_change_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let text = format!("#!/bin/sh\ntouch {}\n", mark.display());
    let script = write_script(folder.path(), "775", &text);
    let driver = driver(&script, LONG);
    let errors = [
        driver.check(0).await.unwrap_err(),
        driver.stop(0).await.unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(error, StopError::ScriptExposed { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("has mode 0775, so others may change it; run `chmod go-w "),
            "{text}"
        );
    }
    assert!(!mark.exists());
}
