//! The way to stop a server from outside, as a management board would: the script of `[forced_stop]` puts
//! a request into a folder, and a thread of the test cuts the power and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `FOLDER` is replaced. A request and its answer are files, renamed into place.
const SCRIPT: &str = r#"#!/bin/sh
set -eu
test -d FOLDER
test "$MIRROR_MODE" = stop || exit 0
request="FOLDER/$MIRROR_LOCAL_SERVER-stops-$MIRROR_DOWN_SERVER"
rm -f "$request.done"
echo "$MIRROR_DOWN_SERVER" > "$request.new"
mv "$request.new" "$request"
while ! test -e "$request.done"; do sleep 0.05; done
rm -f "$request.done"
"#;

#[derive(Debug)]
pub struct Power {
    folder: PathBuf,
    pub script: PathBuf,
}

/// One call of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    file: PathBuf,
    /// The server that is to go down.
    pub server: String,
}

impl Power {
    pub fn new(parent: &Path) -> Result<Self> {
        let folder = parent.join("power");
        fs::create_dir(&folder)?;
        let script = parent.join("forced-stop.sh");
        fs::write(
            &script,
            SCRIPT.replace("FOLDER", &folder.display().to_string()),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder, script })
    }

    /// The request that has waited longest, if one waits.
    pub fn request(&self) -> Result<Option<Request>> {
        let mut waiting = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let file = entry?.path();
            if file.extension().is_none() {
                waiting.push((fs::metadata(&file)?.modified()?, file));
            }
        }
        let Some((_, file)) = waiting.into_iter().min() else {
            return Ok(None);
        };
        let server = fs::read_to_string(&file)?.trim().to_owned();
        Ok(Some(Request { file, server }))
    }

    /// The script ends well.
    pub fn answer(&self, request: &Request) -> Result<()> {
        fs::rename(&request.file, request.file.with_extension("done"))
            .with_context(|| format!("cannot answer {request:?}"))
    }
}
