//! What people use: libnbd's tools, QEMU's, fio.

use crate::server::{MIB, TestServer};
use crate::tools::{python, succeed};

/// A file of `bytes` with contents that differ from block to block.
fn patterned_file(server: &TestServer, name: &str, bytes: u64) -> String {
    let path = server.file(name);
    let contents: Vec<u8> = (0..bytes / 8)
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect();
    std::fs::write(&path, contents).expect("write the pattern");
    path
}

#[test]
fn nbdinfo_sees_every_feature() {
    let server = TestServer::start(64 * MIB);
    for uri in [server.uri(), server.tcp_uri()] {
        let text = succeed("nbdinfo", &["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["export-size"], 64 * MIB);
        assert_eq!(export["description"], "memory");
        for feature in [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ] {
            assert_eq!(export[feature], true, "{feature}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
        assert_eq!(export["contexts"][0], "base:allocation");
    }
    server.stop();
}

#[test]
fn nbdinfo_lists_the_export() {
    let server = TestServer::start(MIB);
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    let text = succeed("nbdinfo", &["--list", &uri]);
    assert!(text.contains("export=\"disk\""), "{text}");
    server.stop();
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    let server = TestServer::start(16 * MIB);
    let write = "h.connect_uri(uri)\nh.pwrite(b'x' * 65536, 4 << 20)\n";
    python(&server.uri(), write);
    let text = succeed("nbdinfo", &["--map", "--json", &server.uri()]);
    let map: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let extents: Vec<_> = map
        .as_array()
        .expect("a list")
        .iter()
        .map(|extent| {
            (
                extent["offset"].as_u64(),
                extent["length"].as_u64(),
                extent["type"].as_u64(),
            )
        })
        .collect();
    let (data_end, end) = (4 * MIB + 65536, 16 * MIB);
    assert_eq!(
        extents,
        [
            (Some(0), Some(4 * MIB), Some(3)),
            (Some(4 * MIB), Some(65536), Some(0)),
            (Some(data_end), Some(end - data_end), Some(3)),
        ]
    );
    server.stop();
}

#[test]
fn nbdcopy_brings_a_disk_in_and_out_again() {
    let server = TestServer::start(32 * MIB);
    let source = patterned_file(&server, "source", 32 * MIB);
    let copy = server.file("copy");
    succeed("nbdcopy", &["--connections=4", &source, &server.uri()]);
    succeed("nbdcopy", &["--connections=4", &server.uri(), &copy]);
    assert!(std::fs::read(source).expect("source") == std::fs::read(copy).expect("copy"));
    server.stop();
}

#[test]
fn nbdcopy_of_large_requests_without_structured_replies_comes_out_right() {
    let server = TestServer::start(48 * MIB);
    let source = patterned_file(&server, "source", 48 * MIB);
    succeed(
        "nbdcopy",
        &["--request-size=33554432", &source, &server.uri()],
    );
    let script = "h.set_request_structured_replies(False)\n\
        h.connect_uri(uri)\n\
        want = open(sys.argv[1].split('socket=')[1].replace('disk.nbd', 'source'), 'rb').read()\n\
        cookies = []\n\
        for start in (0, 512, 12 << 20, (16 << 20) - 4096):\n\
        \x20   b = nbd.Buffer(32 << 20)\n\
        \x20   cookies.append((start, b, h.aio_pread(b, start)))\n\
        \x20   small = nbd.Buffer(4096)\n\
        \x20   cookies.append((start, small, h.aio_pread(small, start)))\n\
        \x20   cookies.append((start, None, h.aio_flush()))\n\
        for start, b, cookie in cookies:\n\
        \x20   while not h.aio_command_completed(cookie): h.poll(-1)\n\
        \x20   if b is not None:\n\
        \x20       got = bytes(b.to_bytearray())\n\
        \x20       assert got == want[start:start + len(got)], start\n";
    python(&server.uri(), script);
    server.stop();
}

#[test]
fn qemu_img_converts_compares_and_informs() {
    let server = TestServer::start(32 * MIB);
    let source = patterned_file(&server, "source", 32 * MIB);
    let uri = server.uri();
    succeed(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri],
    );
    succeed(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    );
    let back = server.file("back.qcow2");
    succeed(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &back],
    );
    succeed(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &back, &uri],
    );
    let text = succeed("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
    let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(info["virtual-size"], 32 * MIB);
    let text = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(text.contains("\"data\": true"), "{text}");
    server.stop();
}

#[test]
fn qemu_io_reads_what_it_wrote_trimmed_and_zeroed() {
    let server = TestServer::with(64 * MIB, 4096, Default::default());
    let commands = [
        "write -P 0x11 0 20M",
        "write -f -P 0x22 1M 64k",
        "read -P 0x11 0 1M",
        "read -P 0x22 1M 64k",
        "write -z -u 2M 9M",
        "read -P 0 2M 9M",
        "write -z 11M 1M",
        "read -P 0 11M 1M",
        "discard 12M 5M",
        "read -P 0 12M 5M",
        "read -P 0x11 17M 3M",
        // Smaller than a block: QEMU reads, changes and writes it.
        "write -P 0x33 512 512",
        "read -P 0x33 512 512",
        "read -P 0x11 1024 512",
        "flush",
        "aio_write -P 0x44 30M 16M",
        "aio_flush",
        "read -P 0x44 30M 16M",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    let uri = server.uri();
    arguments.push(&uri);
    let text = succeed("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
    server.stop();
}

#[test]
fn fio_verifies_eight_jobs_at_once() {
    let server = TestServer::start(128 * MIB);
    let uri = format!("--uri={}", server.uri());
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--numjobs=8",
        "--size=16m",
        "--offset_increment=16m",
        "--rw=randwrite",
        "--bsrange=512-256k",
        "--bs_unaligned=0",
        "--blockalign=512",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--group_reporting",
    ];
    let text = succeed("fio", &arguments);
    assert!(text.contains("err= 0"), "{text}");
    server.wait_until("connections end", |_, server| server.connections() == 0);
    server.stop();
}
