//! What a machine needs to unpack and to compile a source tree: a small compiler with what it links, and the tree.
//!
//! The tree is the headers of the C library and of the kernel, as this system has them, and units that are written
//! here and include them. Nothing in it depends on a time or a path, so that two builds of it are the same bytes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use local_pair::run_tool;

use super::PATIENCE;

/// Debian's packages with the headers. Whoever can build this project has them.
const HEADERS: [&str; 2] = ["libc6-dev", "linux-libc-dev"];
const HEADER_FOLDER: &str = "/usr/include";
/// Where machines have these, too.
const LIBRARY_FOLDER: &str = "/usr/lib/x86_64-linux-gnu";
const LINKED: [&str; 6] = [
    "crt1.o",
    "crti.o",
    "crtn.o",
    "libc.so",
    "libc_nonshared.a",
    "tcc/libtcc1.a",
];
const OWN_HEADERS: &str = "tcc/include";

/// The tree below the folder of a machine's tools.
pub const TREE: &str = "/tools/tree";
const UNITS: usize = 40;
const FUNCTIONS: usize = 40;

const INCLUDED: [&str; 10] = [
    "errno.h",
    "math.h",
    "netinet/in.h",
    "pthread.h",
    "stdio.h",
    "stdlib.h",
    "string.h",
    "sys/socket.h",
    "sys/stat.h",
    "linux/fs.h",
];

/// Builds the tree in the current folder.
const BUILD: &str = "set -e
compile='tcc -I include -I include/x86_64-linux-gnu'
for source in src/*.c; do
    $compile -c $source -o ${source%.c}.o
done
tcc src/*.o -o program
./program >said
";

/// Files of this system, and where they go on the disk of programs.
pub fn files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    for name in LINKED {
        let from = Path::new(LIBRARY_FOLDER).join(name);
        files.push((from, Path::new("lib").join(name)));
    }
    let own = Path::new(LIBRARY_FOLDER).join(OWN_HEADERS);
    let listed = fs::read_dir(&own).with_context(|| format!("cannot list {}", own.display()))?;
    for entry in listed {
        let path = entry?.path();
        let to = Path::new("lib").join(path.strip_prefix(LIBRARY_FOLDER)?);
        files.push((path, to));
    }
    let mut command = vec!["--listfiles"];
    command.extend(HEADERS);
    let listed = run_tool("dpkg-query", &command, PATIENCE)?;
    for path in listed.lines().map(Path::new) {
        if let Ok(name) = path.strip_prefix(HEADER_FOLDER)
            && path.is_file()
        {
            files.push((path.into(), Path::new("tree/include").join(name)));
        }
    }
    ensure!(
        files.iter().any(|(_, to)| to.ends_with("include/stdio.h")),
        "{HEADERS:?} have no stdio.h in {HEADER_FOLDER}"
    );
    files.sort();
    Ok(files)
}

/// What of the tree is written here, and where it goes.
pub fn sources() -> Vec<(PathBuf, String)> {
    let mut declared = String::new();
    let mut called = String::new();
    let mut all = vec![("tree/build.sh".into(), BUILD.into())];
    for unit in 0..UNITS {
        // Writing to a string does not fail.
        let _ = writeln!(declared, "unsigned unit{unit}(unsigned value);");
        let _ = writeln!(called, "    value = unit{unit}(value);");
        all.push((format!("tree/src/unit{unit}.c").into(), source(unit)));
    }
    all.push(("tree/src/units.h".into(), declared));
    let main = format!(
        "#include <stdio.h>\n#include \"units.h\"\n\nint main(void) {{\n    unsigned value = 1;\n{called}    \
         printf(\"%u\\n\", value);\n    return 0;\n}}\n"
    );
    all.push(("tree/src/main.c".into(), main));
    all
}

fn source(unit: usize) -> String {
    let mut text = String::new();
    for name in INCLUDED {
        let _ = writeln!(text, "#include <{name}>");
    }
    text += "#include \"units.h\"\n";
    let mut calls = String::new();
    for function in 0..FUNCTIONS {
        let odd = 2 * (unit * FUNCTIONS + function) + 1;
        let _ = writeln!(
            text,
            "\nstatic unsigned step{function}(unsigned value) {{\n    \
                 for (unsigned round = 0; round < sizeof(struct stat); round++)\n        \
                     value = (value ^ value >> 15) * {odd}u + EINVAL;\n    \
                 return value;\n}}"
        );
        let _ = writeln!(calls, "    value = step{function}(value);");
    }
    let _ = writeln!(
        text,
        "\nunsigned unit{unit}(unsigned value) {{\n{calls}    return value;\n}}"
    );
    text
}
