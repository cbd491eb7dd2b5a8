//! Secrets stay where they are: with everything logged that can be, neither the cluster key nor the key of the
//! exports' certificate is in anything that a running pair says, keeps or shows to other programs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use local_pair::{Authority, MIRROR, NbdTlsFiles, Pair, PairOptions, Programs, Side};
use mirror_core::link::preface::ClusterKey;

use crate::client::{qemu_io, run, run_failing};
use crate::small;

/// Everything that was said or is to be seen somewhere, and where.
#[derive(Default)]
struct Said(Vec<(String, Vec<u8>)>);

impl Said {
    fn add(&mut self, what: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let (what, bytes) = (what.into(), bytes.into());
        ensure!(!bytes.is_empty(), "{what} is empty: nothing is shown by it");
        self.0.push((what, bytes));
        Ok(())
    }

    fn ctl(&mut self, pair: &Pair, side: Side, words: &[&str]) -> Result<()> {
        let outcome = pair.ctl(side, words);
        self.add(
            words.join(" "),
            format!("{}\n{}", outcome.stdout, outcome.stderr),
        )
    }

    fn assert_lacks(&self, secret: &Secret) -> Result<()> {
        for (what, bytes) in &self.0 {
            for form in &secret.forms {
                let found = bytes.windows(form.len()).any(|window| window == form);
                ensure!(!found, "{} is in {what}", secret.name);
            }
        }
        Ok(())
    }
}

/// The forms in which a secret could come out. Half of one is as bad as all of it.
struct Secret {
    name: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn of_bytes(name: &'static str, bytes: &[u8]) -> Self {
        let halves = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]];
        let mut forms = Vec::new();
        for half in halves {
            let digits: String = half.iter().map(|byte| format!("{byte:02x}")).collect();
            forms.push(digits.to_uppercase().into_bytes());
            forms.push(digits.into_bytes());
            let list: Vec<String> = half.iter().map(u8::to_string).collect();
            forms.push(list.join(", ").into_bytes());
            forms.push(half.to_vec());
        }
        Self { name, forms }
    }

    fn of_pem(name: &'static str, text: &str) -> Self {
        let lines = text.lines().filter(|line| line.len() == 64);
        let forms = lines.map(|line| line.as_bytes().to_vec()).collect();
        Self { name, forms }
    }
}

fn bytes_of(digits: &str) -> Vec<u8> {
    let digits = digits.trim();
    (0..digits.len() / 2)
        .filter_map(|index| u8::from_str_radix(&digits[2 * index..][..2], 16).ok())
        .collect()
}

#[test]
fn no_key_is_in_anything_that_a_pair_says_or_shows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new("ours")?;
    let files: NbdTlsFiles =
        authority.write_server(&folder.path().join("server"), &["localhost"])?;
    let options = PairOptions {
        nbd_tls: Some(files.clone()),
        ..small()
    };
    let mut pair = Pair::create(Programs::fresh()?, &options)?;
    for side in Side::BOTH {
        pair.set_wrapper(side, &["env", "RUST_LOG=trace"]);
    }
    pair.bring_up()?;
    pair.promote_first()?;
    qemu_io(&pair.uri(Side::First), &["write -P 5 0 1M", "flush"])?;
    // A client that is refused, and a stranger at the link.
    run_failing("nbdinfo", &[&pair.tcp_uri(Side::First)])?;
    let mut stranger = std::net::TcpStream::connect(&pair.node(Side::Second).replication)?;
    std::io::Write::write_all(&mut stranger, b"MIRRORPF and nothing that follows")?;
    drop(stranger);

    let mut said = Said::default();
    for side in Side::BOTH {
        for words in [
            &["--json", "mdstat"][..],
            &["mdstat"],
            &["--json", "explain", MIRROR],
            &["--json", "events"],
            &["check"],
            &["status"],
        ] {
            said.ctl(&pair, side, words)?;
        }
        let process = pair.node(side).process_id().unwrap_or_default();
        for file in ["cmdline", "environ", "status"] {
            let path = PathBuf::from(format!("/proc/{process}/{file}"));
            said.add(path.display().to_string(), fs::read(&path)?)?;
        }
    }
    let inspect = pair.programs().mirror_inspect.display().to_string();
    for side in Side::BOTH {
        pair.node_mut(side).stop()?;
        let node = pair.node(side);
        let log = node.log();
        ensure!(log.contains("DEBUG"), "not everything is logged: {log}");
        said.add(format!("the log of {}", node.name), log)?;
        let metadata = node.metadata.clone().unwrap_or_default();
        said.add("the metadata", fs::read(&metadata)?)?;
        let shown = run(&inspect, &[&metadata.display().to_string()])?;
        said.add("mirror-inspect", shown)?;
    }

    let key = bytes_of(&fs::read_to_string(pair.folder().join("cluster.key"))?);
    ensure!(key.len() == 32, "the key has {} bytes", key.len());
    let cluster = ClusterKey::new(&key).expect("long enough");
    for secret in [
        Secret::of_bytes("the cluster key", &key),
        Secret::of_bytes("the key of heartbeats", &cluster.derive("mirror heartbeat")),
        Secret::of_bytes("the key of the witness", &cluster.derive("mirror witness")),
        Secret::of_pem("the key of the exports", &fs::read_to_string(&files.key)?),
    ] {
        ensure!(secret.forms.len() > 1, "{} has no forms", secret.name);
        said.assert_lacks(&secret)?;
    }
    Ok(())
}

#[test]
fn a_node_whose_files_others_may_change_or_replace_does_not_start() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut pair = Pair::create(Programs::fresh()?, &small())?;
    let config = pair.node(Side::First).config.clone();
    let folder = pair.folder().to_owned();
    let key = folder.join("cluster.key");
    let run_dir = pair.node(Side::First).run_dir();
    fs::create_dir(&run_dir)?;
    for (path, mode, words) in [
        (&config, 0o664, "the configuration"),
        (&key, 0o640, "the cluster key"),
        (&run_dir, 0o777, "the run directory"),
        // Whoever may write to the folder can put another key there.
        (&folder, 0o777, "so others may replace it"),
    ] {
        let before = fs::metadata(path)?.permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        pair.spawn(Side::First)?;
        let node = pair.node_mut(Side::First);
        let code = node.wait_end(local_pair::Deadline::after_seconds(20))?;
        let log = node.log();
        ensure!(code == Some(1), "{words}: ended with {code:?}: {log}");
        ensure!(
            log.contains(words) && log.contains("chmod"),
            "{words}: {log}"
        );
        fs::set_permissions(path, before)?;
        fs::remove_file(node.log_path())?;
    }
    Ok(())
}
