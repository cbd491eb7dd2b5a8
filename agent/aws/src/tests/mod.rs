//! Against `moto_server`, which keeps instances and checks signatures and policies, and, for what it never
//! answers, against a server here that says what a test tells it to.

mod said;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_sdk_ec2::config::Credentials;

use super::*;
use local_ec2::Moto;
use said::{RUNNING, Server, refusal};

const LONG: Duration = Duration::from_secs(60);

fn settings(instances: &[String; 2], endpoint: &str) -> Settings {
    Settings {
        instances: instances.clone(),
        action: Action::Stop,
        region: Some("eu-west-1".into()),
        endpoint: Some(endpoint.into()),
        profile: None,
        timeout: LONG,
    }
}

fn stopper(settings: Settings, key: &str, secret: &str) -> Stopper {
    let credentials = Credentials::new(key, secret, None, None, "test");
    Stopper {
        credentials: Some(SharedCredentialsProvider::new(credentials)),
        ..Stopper::new(settings)
    }
}

/// With keys that nobody looks at.
fn any_stopper(settings: Settings) -> Stopper {
    stopper(settings, "AKIAANY", "any")
}

fn ids() -> [String; 2] {
    ["i-00000001".into(), "i-00000002".into()]
}

#[tokio::test]
async fn a_stop_is_accepted_and_then_confirmed() {
    let moto = Moto::shared();
    let instances = moto.run_instances();
    let stopper = any_stopper(settings(&instances, &moto.url()));
    assert!(!stopper.is_down(1).await.unwrap());
    assert_eq!(stopper.stop(1).await.unwrap(), Stopped::Accepted);
    let began = Instant::now();
    while !stopper.is_down(1).await.unwrap() {
        assert!(began.elapsed() < LONG);
    }
    assert_eq!(moto.state(&instances[1]), "stopped");
    assert_eq!(
        moto.state(&instances[0]),
        "running",
        "the other is untouched"
    );
}

#[tokio::test]
async fn a_termination_is_accepted_and_then_confirmed() {
    let moto = Moto::shared();
    let instances = moto.run_instances();
    let stopper = any_stopper(Settings {
        action: Action::Terminate,
        ..settings(&instances, &moto.url())
    });
    stopper.check(0).await.unwrap();
    assert_eq!(stopper.stop(0).await.unwrap(), Stopped::Accepted);
    let began = Instant::now();
    while !stopper.is_down(0).await.unwrap() {
        assert!(began.elapsed() < LONG);
    }
    assert_eq!(moto.state(&instances[0]), "terminated");
    let error = stopper.check(0).await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_check_stops_nothing() {
    let moto = Moto::shared();
    let instances = moto.run_instances();
    let stopper = any_stopper(settings(&instances, &moto.url()));
    stopper.check(0).await.unwrap();
    stopper.check(1).await.unwrap();
    assert_eq!(moto.state(&instances[0]), "running");
    assert_eq!(moto.state(&instances[1]), "running");
}

#[tokio::test]
async fn an_instance_that_is_not_there_is_named_and_never_counts_as_down() {
    let moto = Moto::shared();
    let stopper = any_stopper(settings(&ids(), &moto.url()));
    for error in [
        stopper.check(0).await.unwrap_err(),
        stopper.stop(0).await.unwrap_err(),
        stopper.is_down(0).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::UnknownInstance { .. }), "{error:?}");
        let message = error.to_string();
        for part in ["i-00000001", "eu-west-1", "`instance`"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

/// The id is right, but of another region.
#[tokio::test]
async fn an_instance_of_another_region_is_not_there() {
    let moto = Moto::shared();
    let instances = moto.run_instances();
    let stopper = any_stopper(Settings {
        region: Some("us-east-2".into()),
        ..settings(&instances, &moto.url())
    });
    let error = stopper.check(0).await.unwrap_err();
    assert!(matches!(error, Error::UnknownInstance { .. }), "{error:?}");
    assert!(error.to_string().contains("us-east-2"), "{error}");
}

#[tokio::test]
async fn a_protected_instance_is_named_with_what_to_do() {
    let moto = Moto::shared();
    let instances = moto.run_instances();
    moto.ec2(&format!(
        "Action=ModifyInstanceAttribute&InstanceId={}&DisableApiStop.Value=true",
        instances[0]
    ));
    let stopper = any_stopper(settings(&instances, &moto.url()));
    let error = stopper.stop(0).await.unwrap_err();
    assert!(matches!(error, Error::Protected { .. }), "{error:?}");
    assert_eq!(moto.state(&instances[0]), "running");
}

#[tokio::test]
async fn credentials_are_refused_for_what_they_lack() {
    // Not shared: it checks signatures from some point on.
    let moto = Moto::start();
    let instances = moto.run_instances();
    let (nobody, nobody_secret) = moto.add_user("nobody", None);
    let actions = r#"["ec2:DescribeInstances","ec2:StopInstances"]"#;
    let (fence, fence_secret) = moto.add_user("fence", Some(actions));
    let (reader, reader_secret) = moto.add_user("reader", Some(r#"["ec2:DescribeInstances"]"#));
    moto.check_signatures();
    let with = |key: &str, secret: &str| stopper(settings(&instances, &moto.url()), key, secret);

    for stopper in [with("AKIANOTHERE", "x"), with(&fence, "wrong")] {
        let error = stopper.check(0).await.unwrap_err();
        assert!(matches!(error, Error::BadCredentials { .. }), "{error:?}");
    }
    let error = with(&nobody, &nobody_secret).check(0).await.unwrap_err();
    assert!(matches!(error, Error::NotAllowed { .. }), "{error:?}");
    assert!(error.to_string().contains(DESCRIBE), "{error}");

    let reader = with(&reader, &reader_secret);
    for error in [
        reader.check(0).await.unwrap_err(),
        reader.stop(0).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotAllowed { .. }), "{error:?}");
        assert!(error.to_string().contains("ec2:StopInstances"), "{error}");
    }

    let stopper = with(&fence, &fence_secret);
    stopper.check(0).await.unwrap();
    assert_eq!(stopper.stop(0).await.unwrap(), Stopped::Accepted);
    assert!(stopper.is_down(0).await.unwrap());
}

#[tokio::test]
async fn an_endpoint_that_nobody_listens_on_is_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let error = any_stopper(settings(&ids(), &url))
        .check(0)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_ends_the_call_at_its_time_out() {
    // Connections are taken by the system and never read.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let timeout = Duration::from_millis(300);
    let stopper = any_stopper(Settings {
        timeout,
        ..settings(&ids(), &url)
    });
    let began = Instant::now();
    for error in [
        stopper.check(0).await.unwrap_err(),
        stopper.stop(0).await.unwrap_err(),
        stopper.is_down(0).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    }
    assert!(began.elapsed() >= 3 * timeout);
    assert!(began.elapsed() < LONG / 4);
}

#[tokio::test]
async fn every_refusal_of_ec2_becomes_the_error_that_says_what_to_do() {
    async fn check(code: &str, expected: fn(&Error) -> bool) {
        let code = code.to_owned();
        let answer = refusal(&code, "because");
        let server = Server::start(move |_| answer.clone());
        let error = any_stopper(settings(&ids(), &server.url()))
            .stop(0)
            .await
            .unwrap_err();
        assert!(expected(&error), "{code}: {error:?}");
    }
    check("RequestExpired", |e| {
        matches!(e, Error::ExpiredCredentials { .. })
    })
    .await;
    check("ExpiredToken", |e| {
        matches!(e, Error::ExpiredCredentials { .. })
    })
    .await;
    check("AuthFailure", |e| matches!(e, Error::BadCredentials { .. })).await;
    check("OptInRequired", |e| {
        matches!(e, Error::BadCredentials { .. })
    })
    .await;
    check("UnauthorizedOperation", |e| {
        matches!(e, Error::NotAllowed { .. })
    })
    .await;
    check("InvalidInstanceID.Malformed", |e| {
        matches!(e, Error::UnknownInstance { .. })
    })
    .await;
    check("OperationNotPermitted", |e| {
        matches!(e, Error::Protected { .. })
    })
    .await;
    check("UnsupportedOperation", |e| {
        matches!(e, Error::Refused { .. })
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_somebody_else_stopped_meanwhile_is_confirmed() {
    async fn check(state: &'static str, expected: Result<Stopped, ()>) {
        let server = Server::start(move |request| match request.contains("DescribeInstances") {
            true => RUNNING.replace("running", state),
            false => refusal("IncorrectInstanceState", "not now"),
        });
        let result = any_stopper(settings(&ids(), &server.url())).stop(0).await;
        match expected {
            Ok(expected) => assert_eq!(result.unwrap(), expected, "{state}"),
            Err(()) => assert!(matches!(result, Err(Error::Unusable { .. })), "{state}"),
        }
    }
    check("terminated", Ok(Stopped::Confirmed)).await;
    check("shutting-down", Ok(Stopped::Accepted)).await;
    check("pending", Err(())).await;
}

#[tokio::test]
async fn an_endpoint_that_is_no_ec2_is_named() {
    let server = Server::start(|_| "it works!".into());
    let error = any_stopper(settings(&ids(), &server.url()))
        .check(0)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Garbled { .. }), "{error:?}");
    assert!(error.to_string().contains("`endpoint`"), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_stops_in_a_trial_is_named() {
    let server = Server::start(|request| match request.contains("DescribeInstances") {
        true => RUNNING.into(),
        false => "<StopInstancesResponse><instancesSet/></StopInstancesResponse>".into(),
    });
    let error = any_stopper(settings(&ids(), &server.url()))
        .check(0)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TrialIgnored { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stop_is_forced_and_asks_the_guest_nothing() {
    let server = Server::start(|_| refusal("UnsupportedOperation", "no"));
    let stopper = any_stopper(settings(&ids(), &server.url()));
    stopper.stop(1).await.unwrap_err();
    let request = server.requests().remove(0);
    for part in [
        "Action=StopInstances",
        "InstanceId.1=i-00000002",
        "Force=true",
        "SkipOsShutdown=true",
        "DryRun=false",
    ] {
        assert!(request.contains(part), "{request}");
    }
}

const CASE: &str = "MIRROR_AWS_TEST_CASE";

/// Variables belong to a whole process, so each case runs in one of its own: this same test.
#[tokio::test]
async fn region_credentials_and_endpoint_come_from_the_usual_places() {
    if let Ok(case) = std::env::var(CASE) {
        return in_an_environment_of_its_own(&case).await;
    }
    let server = Server::start(|_| refusal("InvalidInstanceID.NotFound", "none"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let keys = |key: &str| format!("aws_access_key_id = {key}\naws_secret_access_key = x\n");
    let text = format!(
        "[profile fence]\nregion = eu-south-1\n{}",
        keys("AKIAOFPROFILE")
    );
    std::fs::write(&file, text).unwrap();
    let url = server.url();
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKIAOFVARIABLE"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_ENDPOINT_URL", &url),
        ("AWS_REGION", "eu-west-3"),
    ];
    run_case(folder.path(), "no region", &[]);
    run_case(folder.path(), "no credentials", &[]);
    run_case(folder.path(), "variables", &variables);
    run_case(folder.path(), "profile", &variables[..3]);
    let requests = server.requests();
    assert!(requests[0].contains("Credential=AKIAOFVARIABLE/"));
    assert!(requests[0].contains("/eu-west-3/ec2/"));
    assert!(requests[1].contains("Credential=AKIAOFPROFILE/"));
    assert!(requests[1].contains("/eu-south-1/ec2/"));
    assert_eq!(requests.len(), 2);

    fn run_case(folder: &Path, case: &str, variables: &[(&str, &str)]) {
        let name = "tests::region_credentials_and_endpoint_come_from_the_usual_places";
        let output = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env_clear()
            .env("HOME", folder)
            .env("AWS_CONFIG_FILE", folder.join("config"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env(CASE, case)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{case}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

async fn in_an_environment_of_its_own(case: &str) {
    let bare = Settings {
        region: None,
        endpoint: None,
        ..settings(&ids(), "")
    };
    let check =
        |settings: Settings| async move { Stopper::new(settings).check(0).await.unwrap_err() };
    match case {
        "no region" => {
            let error = check(bare).await;
            assert!(matches!(error, Error::NoRegion), "{error:?}");
        }
        "no credentials" => {
            let error = check(settings(&ids(), "http://127.0.0.1:1")).await;
            assert!(matches!(error, Error::NoCredentials { .. }), "{error:?}");
        }
        "variables" => {
            let error = check(bare).await;
            assert!(matches!(error, Error::UnknownInstance { .. }), "{error:?}");
        }
        "profile" => {
            let error = check(Settings {
                profile: Some("fence".into()),
                ..bare
            })
            .await;
            assert!(matches!(error, Error::UnknownInstance { .. }), "{error:?}");
        }
        case => panic!("no case {case}"),
    }
}
