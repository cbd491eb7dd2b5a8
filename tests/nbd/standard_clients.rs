//! libnbd's and QEMU's clients and fio are fully satisfied, and what they wrote is on both sides.

use anyhow::{Result, ensure};
use local_pair::{PairOptions, Side};
use serde_json::Value;

use crate::client::{qemu_io, random_file, run, run_failing};
use crate::{MIB, assert_same_data, small, synced};

#[test]
fn nbdinfo_reads_the_export_and_its_map() -> Result<()> {
    let pair = synced(&small())?;
    for uri in [pair.uri(Side::First), pair.tcp_uri(Side::First)] {
        let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])?)?;
        let export = &info["exports"][0];
        ensure!(export["export-size"] == 64 * MIB, "{info}");
        for feature in [
            "can_multi_conn",
            "can_flush",
            "can_fua",
            "can_trim",
            "can_zero",
        ] {
            ensure!(export[feature] == true, "{feature}: {info}");
        }
        ensure!(export["is_read_only"] == false, "{info}");
    }
    let uri = pair.uri(Side::First);
    qemu_io(&uri, &["write -P 7 8M 4M", "write -z -u 16M 4M", "flush"])?;
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", &uri])?)?;
    let covered: u64 = map
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|extent| extent["length"].as_u64())
        .sum();
    ensure!(covered == 64 * MIB, "the map covers {covered} bytes: {map}");
    Ok(())
}

#[test]
fn the_list_of_exports_names_the_mirror_on_both_sides() -> Result<()> {
    let pair = synced(&small())?;
    let socket = pair.node(Side::First).nbd_socket(local_pair::MIRROR);
    let list = run(
        "nbdinfo",
        &[
            "--list",
            &format!("nbd+unix:///?socket={}", socket.display()),
        ],
    )?;
    ensure!(list.contains(local_pair::MIRROR), "{list}");
    Ok(())
}

#[test]
fn a_secondary_refuses_its_export() -> Result<()> {
    let pair = synced(&small())?;
    for uri in [pair.uri(Side::Second), pair.tcp_uri(Side::Second)] {
        // QEMU passes on what the server says.
        let said = run_failing("qemu-img", &["info", &uri])?;
        ensure!(
            said.contains("md1 is not served by server2, which is not its primary")
                && said.contains("connect to the other node, or run `mirrorctl promote md1` here"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn nbdcopy_goes_both_ways() -> Result<()> {
    let mut pair = synced(&small())?;
    let source = pair.folder().join("source");
    let back = pair.folder().join("back");
    random_file(&source, 64 * MIB)?;
    let uri = pair.uri(Side::First);
    let [source, back] = [source, back].map(|path| path.display().to_string());
    run("nbdcopy", &["--flush", &source, &uri])?;
    run("nbdcopy", &[&uri, &back])?;
    run("cmp", &[&source, &back])?;
    assert_same_data(&mut pair)?;
    run(
        "cmp",
        &[&source, &pair.node(Side::Second).data.display().to_string()],
    )?;
    Ok(())
}

#[test]
fn qemu_img_converts_and_compares() -> Result<()> {
    let mut pair = synced(&small())?;
    let source = pair.folder().join("source");
    random_file(&source, 40 * MIB)?;
    std::fs::File::options()
        .write(true)
        .open(&source)?
        .set_len(64 * MIB)?;
    let source = source.display().to_string();
    let uri = pair.uri(Side::First);
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri],
    )?;
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    )?;
    assert_same_data(&mut pair)
}

#[test]
fn qemu_io_writes_zeroes_and_trims_at_odd_places() -> Result<()> {
    let mut pair = synced(&small())?;
    qemu_io(
        &pair.uri(Side::First),
        &[
            "write -P 0x11 0 16M",
            "write -P 0x22 4094K 12K",
            "read -P 0x22 4094K 12K",
            "read -P 0x11 4106K 4K",
            "write -z 1M 5M",
            "read -P 0 1M 5M",
            "write -z -u 7M 1M",
            "read -P 0 7M 1M",
            "discard 9437696 1048576",
            "read -P 0 9437696 1048576",
            "read -P 0x11 9437184 512",
            "write -f -P 0x33 12M 1M",
            "read -P 0x33 12M 1M",
            "flush",
        ],
    )?;
    assert_same_data(&mut pair)
}

#[test]
fn fio_verifies_over_eight_connections() -> Result<()> {
    for encryption in [true, false] {
        let mut pair = synced(&PairOptions {
            encryption,
            ..small()
        })?;
        run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", pair.uri(Side::First)),
                "--rw=randwrite",
                "--bs=4k",
                "--iodepth=16",
                "--numjobs=8",
                "--size=8m",
                "--offset_increment=8m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--do_verify=1",
                "--group_reporting",
            ],
        )?;
        ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
        assert_same_data(&mut pair)?;
    }
    Ok(())
}
