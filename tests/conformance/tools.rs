//! Runs the tools, each with a time limit.

use std::process::{Command, Output};

/// Which Debian package has the tool.
fn package_of(tool: &str) -> &'static str {
    match tool {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "fio" => "fio",
        "/usr/bin/python3" => "python3-libnbd",
        other => panic!("no package known for {other}"),
    }
}

pub fn run(tool: &str, arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg("120")
        .arg(tool)
        .args(arguments)
        .output()
        .expect("timeout (package coreutils) runs");
    assert_ne!(
        output.status.code(),
        Some(127),
        "{tool} is missing: install the Debian package {}",
        package_of(tool)
    );
    output
}

/// Runs a tool that must succeed; returns its standard output.
pub fn succeed(tool: &str, arguments: &[&str]) -> String {
    let output = run(tool, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{tool} {arguments:?} ended with {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs a libnbd script; `h` is a handle that is not yet connected and lets everything through.
pub fn python(uri: &str, script: &str) -> String {
    let probe = run("/usr/bin/python3", &["-c", "import nbd"]);
    assert!(
        probe.status.success(),
        "libnbd for Python is missing: install the Debian package python3-libnbd"
    );
    let prologue = "import nbd, sys, errno\n\
        uri = sys.argv[1]\n\
        h = nbd.NBD()\n\
        h.set_strict_mode(0)\n\
        def fails(want, call, *a, **k):\n\
        \x20   try:\n\
        \x20       call(*a, **k)\n\
        \x20   except nbd.Error as e:\n\
        \x20       assert e.errnum == want, f'{e.errno} for {want}: {e.string}'\n\
        \x20       return e.string\n\
        \x20   raise AssertionError(f'no {want} from {call.__name__}{a}')\n";
    let script = format!("{prologue}{script}");
    succeed("/usr/bin/python3", &["-c", &script, uri])
}
