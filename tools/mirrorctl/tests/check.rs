//! `mirrorctl check` with the agent's sections: what it prints, and what it finds on this machine.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use local_pair::loopback_addresses;

const CONFIG: &str = r#"
[cluster]
name = "test"
key_file = "FOLDER/key"
[[node]]
name = "a"
[[node]]
name = "b"
[[mirror]]
name = "md1"
[mirror.on.a]
data = "FOLDER/data"
metadata = "FOLDER/metadata"
replication = "REPLICATION"
nbd = ["unix", "tcp:EXPORT"]
[mirror.on.b]
data = "/nonexistent/b"
metadata = "internal"
replication = "127.0.0.1:29052"

[heartbeat]
[[heartbeat.path]]
name = "first"
on = { a = "HEARTBEAT", b = "127.0.0.2:29053" }

[[partition.resolver]]
kind = "ping"
targets = ["192.0.2.1"]

[forced_stop]
kind = "custom"
script = "FOLDER/stop"

[[group]]
name = "g"
[[group.resource]]
kind = "mirror-disk"
name = "disk"
mirror = "md1"
attach = "fuse"
mount = "FOLDER/mnt"
fsck = "never"
[[group.resource]]
kind = "floating-ip"
name = "address"
address = "192.0.2.100/24"
interface = "lo"
[[group.resource]]
kind = "exec"
name = "app"
start = ["FOLDER/app", "start"]
stop = ["FOLDER/mnt/bin/stop"]
[[group.resource]]
kind = "probe-port"
name = "probe"
tcp = "PROBE"

[[monitor]]
kind = "disk"
name = "disk"
folder = "FOLDER/watched"
"#;

/// A machine on which everything is in its place, but for what a test changes.
struct Site {
    folder: tempfile::TempDir,
    heartbeat: String,
    probe: String,
    replication: String,
    export: String,
}

impl Site {
    fn new() -> Self {
        let [heartbeat, probe, replication, export] = loopback_addresses().unwrap();
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            heartbeat,
            probe,
            replication,
            export,
        };
        for store in ["data", "metadata"] {
            fs::write(site.path(store), "").unwrap();
        }
        for program in ["stop", "app"] {
            site.write(program, 0o755);
        }
        for folder in ["mnt", "watched"] {
            fs::create_dir(site.path(folder)).unwrap();
        }
        site.write_config(|text| text);
        let key = site.path("key");
        let done = site.run(&["keygen", key.to_str().unwrap()]);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        site
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, mode: u32) {
        fs::write(self.path(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn write_config(&self, change: impl FnOnce(String) -> String) {
        let text = CONFIG
            .replace("FOLDER", self.folder.path().to_str().unwrap())
            .replace("HEARTBEAT", &self.heartbeat)
            .replace("PROBE", &self.probe)
            .replace("REPLICATION", &self.replication)
            .replace("EXPORT", &self.export);
        fs::write(self.path("cluster.toml"), change(text)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mirrorctl"))
            .arg("--config")
            .arg(self.path("cluster.toml"))
            .arg("--run-dir")
            .arg(self.folder.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The messages of the problems and of the warnings, each with its key and remedy.
    fn found(&self) -> [Vec<String>; 2] {
        self.found_with(&["--offline"])
    }

    fn found_with(&self, options: &[&str]) -> [Vec<String>; 2] {
        let done = self.run(&[&["check", "--json", "--node", "a"], options].concat());
        let out: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        ["problems", "warnings"].map(|kind| {
            let list = out[kind].as_array().unwrap().iter();
            let word =
                |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
            list.map(|entry| {
                ["key", "message", "remedy"]
                    .map(|key| word(entry, key))
                    .join(": ")
            })
            .collect()
        })
    }

    /// Expects exactly one problem, with all of `parts`.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let [problems, _] = self.found();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(
            parts.iter().all(|part| problems[0].contains(part)),
            "{problems:#?}"
        );
    }
}

#[test]
fn a_machine_with_everything_in_place_has_no_problem() {
    let site = Site::new();
    let [problems, warnings] = site.found();
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(
        !warnings.iter().any(|warning| warning.contains("mount")),
        "{warnings:#?}"
    );
    let done = site.run(&["check", "--offline", "--node", "a"]);
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(
        out.contains(
            "service start-up delay: 285 s = 2 × 66 s fence delay + 60 s forced stop + 0 s stop wait \
             + 90 s heartbeat timeout + 3 s heartbeat interval"
        ),
        "{out}"
    );
    let done = site.run(&["check", "--offline", "--json", "--node", "b"]);
    let out: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(out["startup_delay"]["ms"], 285_000);
    assert_eq!(out["startup_delay"]["needed_ms"], 285_000);
}

#[test]
fn a_host_that_is_no_node_checks_the_file_alone() {
    let site = Site::new();
    fs::remove_file(site.path("stop")).unwrap();
    let done = site.run(&["check"]);
    let out = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{out}");
    assert!(
        out.contains("note: this host is none of the nodes"),
        "{out}"
    );
}

#[test]
fn programs_must_be_there_and_nobody_elses_to_change() {
    let site = Site::new();
    fs::remove_file(site.path("stop")).unwrap();
    site.refused(&["forced_stop script", "stop: No such file", "put it there"]);
    site.write("stop", 0o644);
    site.refused(&["forced_stop script", "cannot be executed", "chmod +x"]);
    site.write("stop", 0o777);
    site.refused(&[
        "forced_stop script",
        "mode 0777",
        "others may change",
        "chmod go-w",
    ]);
    site.write("stop", 0o775);
    site.refused(&[
        "forced_stop script",
        "mode 0775",
        "others may change",
        "chmod go-w",
    ]);
    site.write("stop", 0o755);
    fs::remove_file(site.path("app")).unwrap();
    site.refused(&["group \"g\" resource \"app\" start", "No such file"]);
    fs::create_dir(site.path("app")).unwrap();
    site.refused(&["group \"g\" resource \"app\" start", "is not a file"]);
}

#[test]
fn programs_that_others_own_or_could_replace_are_named_and_not_run() {
    // Only root relies on owners and on the folders above.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    const STRANGER: u32 = 65_533;
    let site = Site::new();
    let mark = site.path("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    fs::write(site.path("stop"), script).unwrap();
    std::os::unix::fs::chown(site.path("stop"), Some(STRANGER), None).unwrap();
    site.refused(&["forced_stop script", "belongs to user 65533", "chown 0"]);
    let [problems, _] = site.found_with(&[]);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(!mark.exists(), "a check ran what is not root's");
    std::os::unix::fs::chown(site.path("stop"), Some(0), None).unwrap();
    fs::create_dir(site.path("open")).unwrap();
    fs::rename(site.path("app"), site.path("open/app")).unwrap();
    fs::set_permissions(site.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    site.write_config(|text| text.replace("/app\"", "/open/app\""));
    site.refused(&[
        "group \"g\" resource \"app\" start",
        "others may replace it",
        "chmod go-w",
    ]);
}

#[test]
fn folders_must_be_there_and_should_be_empty() {
    let site = Site::new();
    fs::write(site.path("mnt/file"), "").unwrap();
    let [problems, warnings] = site.found();
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("mnt is not empty")),
        "{warnings:#?}"
    );
    fs::remove_dir_all(site.path("mnt")).unwrap();
    site.refused(&[
        "resource \"disk\" mount",
        "is no folder on this machine",
        "mkdir -p",
    ]);
    fs::create_dir(site.path("mnt")).unwrap();
    fs::remove_dir(site.path("watched")).unwrap();
    site.refused(&["monitor \"disk\" folder", "is no folder on this machine"]);
    site.write_config(|text| {
        let folder = format!("folder = {:?}", site.path("watched"));
        assert!(text.contains(&folder));
        text.replace(&folder, "folder = \"/proc\"").replace(
            &format!("mount = {:?}", site.path("mnt")),
            "mount = \"/proc\"",
        )
    });
    let [_, warnings] = site.found();
    let mounted = "something is mounted on /proc already";
    assert!(
        warnings.iter().any(|warning| warning.contains(mounted)),
        "{warnings:#?}"
    );
}

#[test]
fn interfaces_and_addresses_must_be_those_of_this_machine() {
    let site = Site::new();
    site.write_config(|text| text.replace("\"lo\"", "\"absent0\""));
    site.refused(&[
        "resource \"address\" interface",
        "no network interface \"absent0\"",
        "ip link",
    ]);
    site.write_config(|text| {
        text.replace(&site.heartbeat, "192.0.2.5:29053")
            .replace("127.0.0.2:29053", "192.0.2.6:29053")
    });
    site.refused(&[
        "heartbeat.path \"first\"",
        "192.0.2.5 is no address of this machine",
    ]);
    // A floating address comes with the group.
    site.write_config(|text| text.replace(&site.probe, "192.0.2.100:80"));
    assert!(site.found()[0].is_empty(), "{:#?}", site.found());
}

#[test]
fn ports_are_free_unless_the_agent_runs() {
    let site = Site::new();
    let heartbeat = UdpSocket::bind(&site.heartbeat).unwrap();
    site.refused(&[
        "heartbeat.path \"first\"",
        "(UDP) is in use by another program",
        "ss -ulpn",
    ]);
    drop(heartbeat);
    let probe = TcpListener::bind(&site.probe).unwrap();
    site.refused(&[
        "resource \"probe\"",
        "(TCP) is in use by another program",
        "ss -tlpn",
    ]);
    let _agent = UnixListener::bind(site.path("agent.sock")).unwrap();
    assert!(site.found()[0].is_empty(), "{:#?}", site.found());
    drop(probe);
}

#[test]
fn a_kernel_without_the_driver_of_a_disk_is_named() {
    if std::path::Path::new("/sys/module/nbd").exists() {
        // What is looked for is there.
        return;
    }
    let site = Site::new();
    site.write_config(|text| {
        text.replace("attach = \"fuse\"", "attach = \"kernel\"")
            .replace("replication = ", "device = \"/dev/nbd0\"\nreplication = ")
    });
    site.refused(&[
        "mirror \"md1\" on \"a\" device: /dev/nbd0 needs",
        "modprobe nbd",
        "attach = \"fuse\"",
    ]);
}

#[test]
fn a_file_with_problems_is_looked_at_as_far_as_it_is_good() {
    let site = Site::new();
    fs::remove_file(site.path("stop")).unwrap();
    fs::remove_dir(site.path("mnt")).unwrap();
    site.write_config(|text| {
        text.replace(
            "name = \"md1\"",
            "name = \"md1\"\npeer_loss = \"continue\"\npeer_los = 1",
        )
        .replace("[heartbeat]", "[heartbeat]\ntime_out = \"90s\"")
        // A resource and a monitor that cannot be read, beside those that can.
        .replace("interface = \"lo\"", "interface = 3")
        .replace("kind = \"disk\"", "kind = \"dis\"")
    });
    let [problems, warnings] = site.found();
    let named = |list: &[String], parts: &[&str]| {
        let all = |entry: &&String| parts.iter().all(|part| entry.contains(part));
        assert!(
            list.iter().any(|entry| all(&entry)),
            "{parts:?} in {list:#?}"
        );
    };
    named(&problems, &["did you mean \"peer_loss\"?"]);
    named(&problems, &["heartbeat time_out"]);
    named(&problems, &["resource \"address\" interface"]);
    named(&problems, &["monitor \"disk\" kind"]);
    named(&problems, &["forced_stop script", "stop: No such file"]);
    named(&problems, &["resource \"disk\" mount", "mkdir -p"]);
    assert_eq!(problems.len(), 6, "{problems:#?}");
    named(&warnings, &["peer_loss", "continue"]);
    // The name of a node that the file does not have is no reason to be silent about the rest.
    let done = site.run(&["check", "--offline", "--node", "c"]);
    let out = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{out}");
    assert!(out.contains("did you mean \"peer_loss\"?"), "{out}");
    assert!(
        out.contains("note: this host is none of the nodes"),
        "{out}"
    );
}

#[test]
fn what_is_missing_on_the_machine_is_shown_with_its_line() {
    let site = Site::new();
    fs::remove_file(site.path("stop")).unwrap();
    let done = site.run(&["check", "--offline", "--node", "a"]);
    let out = String::from_utf8(done.stdout).unwrap();
    let text = fs::read_to_string(site.path("cluster.toml")).unwrap();
    let line = text
        .lines()
        .position(|line| line.starts_with("script"))
        .unwrap()
        + 1;
    let place = format!("cluster.toml:{line}: forced_stop script: cannot look at");
    assert!(out.contains(&place), "{out}");
}

#[test]
fn what_the_agent_relies_on_elsewhere_is_tried() {
    let site = Site::new();
    let script =
        "#!/bin/sh\necho \"$MIRROR_MODE of $MIRROR_DOWN_SERVER: no credentials\"\nexit 3\n";
    fs::write(site.path("stop"), script).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    site.write_config(|text| {
        text.replace("targets = [\"192.0.2.1\"]", "targets = [\"127.0.0.1\"]")
            + &format!("[arbiter]\nurl = \"http://{closed}\"\n")
    });
    let [problems, _] = site.found_with(&[]);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    let found = |parts: &[&str]| {
        let all = |problem: &&String| parts.iter().all(|part| problem.contains(part));
        assert!(
            problems.iter().any(|problem| all(&problem)),
            "{problems:#?}"
        );
    };
    found(&[
        "forced_stop script: ",
        "ended with exit code 3",
        "check of b: no credentials",
        "run it by hand",
        "MIRROR_MODE=check MIRROR_DOWN_SERVER=b MIRROR_LOCAL_SERVER=a MIRROR_CLUSTER=test /",
    ]);
    found(&["arbiter url: ", "cannot be reached", "--offline"]);
    let done = site.run(&["check", "--node", "a"]);
    let out = String::from_utf8(done.stdout).unwrap();
    let text = fs::read_to_string(site.path("cluster.toml")).unwrap();
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("url"))
        .unwrap();
    let place = format!("cluster.toml:{line}: arbiter url: ");
    assert!(out.contains(&place), "{out}");
    assert_eq!(site.found()[0], [""; 0]);
}

#[test]
fn a_build_without_the_cloud_is_named_with_the_command_that_makes_one() {
    if agent::io::forced_stop::AWS_BUILT_IN {
        return;
    }
    let site = Site::new();
    site.write_config(|text| {
        let custom = format!(
            "kind = \"custom\"\nscript = \"{}\"",
            site.path("stop").display()
        );
        assert!(text.contains(&custom));
        text.replace(
            &custom,
            "kind = \"aws\"\non.a.instance = \"i-0123456789abcdef0\"\non.b.instance = \"i-0fedcba9876543210\"",
        )
    });
    let [problems, _] = site.found_with(&[]);
    let [problem] = &problems[..] else {
        panic!("{problems:#?}")
    };
    for part in [
        "forced_stop kind: ",
        "not in this build of mirrorctl",
        "-p agent -p mirrorctl --features agent/aws",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn the_disks_of_a_mirror_must_be_there_and_disks() {
    for store in ["data", "metadata"] {
        let site = Site::new();
        let key = format!("mirror \"md1\" on \"a\" {store}: ");
        fs::remove_file(site.path(store)).unwrap();
        site.refused(&[&key, "No such file", "lsblk"]);
        let line = format!("{store} = ");
        let text = fs::read_to_string(site.path("cluster.toml")).unwrap();
        let number = 1 + text
            .lines()
            .position(|text| text.starts_with(&line))
            .unwrap();
        let out = site.run(&["check", "--offline", "--node", "a"]).stdout;
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains(&format!("cluster.toml:{number}: {key}")),
            "{out}"
        );
        fs::create_dir(site.path(store)).unwrap();
        site.refused(&[&key, "is neither a block device nor a file"]);
    }
}

#[test]
fn the_addresses_of_a_mirror_are_of_this_machine_and_free_unless_its_daemon_runs() {
    let site = Site::new();
    let replication = TcpListener::bind(&site.replication).unwrap();
    site.refused(&[
        "mirror \"md1\" on \"a\" replication: ",
        "(TCP) is in use by another program",
    ]);
    let daemon = UnixListener::bind(site.path("mirrord.sock")).unwrap();
    assert!(site.found()[0].is_empty(), "{:#?}", site.found());
    drop((replication, daemon));
    fs::remove_file(site.path("mirrord.sock")).unwrap();
    let export = TcpListener::bind(&site.export).unwrap();
    site.refused(&[
        "mirror \"md1\" on \"a\" nbd: ",
        "(TCP) is in use by another program",
    ]);
    drop(export);
    site.write_config(|text| text.replace(&site.replication, "192.0.2.5:29051"));
    site.refused(&[
        "mirror \"md1\" on \"a\" replication: ",
        "192.0.2.5 is no address of this machine",
    ]);
    // An export at a floating address is where its group is.
    site.write_config(|text| {
        text.replace(&site.export, "192.0.2.100:10809")
            .replace("name = \"md1\"", "name = \"md1\"\ninsecure = true")
    });
    assert!(site.found()[0].is_empty(), "{:#?}", site.found());
}

#[test]
fn the_folder_of_the_alert_log_is_one_that_can_be_made() {
    let site = Site::new();
    let with_log = |log: &str| {
        let log = site.path(log).display().to_string();
        site.write_config(|text| format!("{text}[agent]\nalert_log = {log:?}\n"));
        site.found()
    };
    let about_it = |list: &[String]| {
        let mut found = list
            .iter()
            .filter(|found| found.starts_with("agent alert_log: "));
        found.next().cloned()
    };
    let [problems, warnings] = with_log("new/alert.log");
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(about_it(&warnings), None);
    let [problems, warnings] = with_log("no/such/alert.log");
    assert!(problems.is_empty(), "{problems:#?}");
    let warning = about_it(&warnings).unwrap();
    assert!(
        warning.contains("no/such") && warning.contains("mkdir -p"),
        "{warning}"
    );
    let [problems, _] = with_log("mnt");
    assert!(
        about_it(&problems).unwrap().contains("is a folder"),
        "{problems:#?}"
    );
    let [problems, _] = with_log("app/alert.log");
    assert!(
        about_it(&problems).unwrap().contains("is no folder"),
        "{problems:#?}"
    );
}
