//! The program from outside: what it prints, what it returns, and that it writes nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mirror_core::layout::geometry::Geometry;
use mirror_core::layout::internal::placement;
use mirror_core::layout::log_record::LogRecord;
use mirror_core::layout::metadata::{FreshParams, Image, fresh};
use mirror_core::layout::superblock::Superblock;
use mirror_core::units::{ExtentIndex, Generation, Uuid};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        Self { folder }
    }

    /// Metadata of node `a` or `b` for 1000 MiB, with the first 100 blocks dirty.
    fn area(&self, node: u8, change: impl FnOnce(&mut Superblock)) -> PathBuf {
        let path = self.folder.path().join(format!("node-{node}"));
        self.write(&path, 0, node, 1000 * MIB, change);
        path
    }

    fn write(
        &self,
        path: &Path,
        offset: u64,
        node: u8,
        usable_bytes: u64,
        change: impl FnOnce(&mut Superblock),
    ) {
        let (mut superblock, _) = fresh(FreshParams {
            cluster: Uuid([1; 16]),
            mirror: Uuid([2; 16]),
            node: Uuid([node; 16]),
            peer: Uuid([0xff; 16]),
            usable_bytes,
            logical_block_bytes: 512,
            adopted: Some(Generation(5)),
        })
        .expect("a size in range");
        change(&mut superblock);
        let geometry = Geometry::of(&superblock).expect("valid");
        let mut words = vec![0; geometry.words()];
        words[0] = u64::MAX;
        words[1] = (1 << 36) - 1;
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .expect("a file");
        for piece in Image::new(&superblock, Some(words)).expect("valid") {
            file.write_all_at(&piece.bytes, offset + piece.offset)
                .expect("space");
        }
    }
}

fn inspect(arguments: &[&str], paths: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mirror-inspect"))
        .args(paths)
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(path: &Path, arguments: &[&str]) -> Value {
    let output = inspect(&[&["--json"], arguments].concat(), &[path]);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn spoil(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("inside");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("inside");
}

#[test]
fn good_metadata_is_printed_whole_and_passes() {
    let fixture = Fixture::new();
    let path = fixture.area(3, |superblock| superblock.epoch.0 = 42);
    let before = fs::read(&path).expect("readable");
    let output = inspect(&[], &[&path]);
    assert!(output.status.success());
    let text = text(&output);
    for part in [
        "copy A           valid, update 1",
        "epoch            42",
        "generation       0000000000000005",
        "dirty            100 blocks in 1 runs, 400.00 KiB",
        "trust            intact",
        "every check passed",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert_eq!(fs::read(&path).expect("readable"), before);
}

#[test]
fn a_file_that_may_not_be_written_can_be_inspected() {
    let fixture = Fixture::new();
    let path = fixture.area(3, |_| {});
    let mut permissions = fs::metadata(&path).expect("there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).expect("owned");
    assert!(inspect(&["--check"], &[&path]).status.success());
}

#[test]
fn json_has_every_part() {
    let fixture = Fixture::new();
    let path = fixture.area(3, |superblock| superblock.flags.last_primary = true);
    let value = json(&path, &[]);
    assert_eq!(value["valid"], true);
    assert_eq!(value["superblock"]["flags"][0], "last-primary");
    assert_eq!(
        value["superblocks"][1]["fields"]["usable_bytes"],
        1000 * MIB
    );
    assert_eq!(value["bitmap"]["dirty_blocks"], 100);
    assert_eq!(value["geometry"]["block_bytes"], 4096);
    assert_eq!(value["activity_log"]["trust"], "intact");
    assert_eq!(value["internal_offset"], Value::Null);
}

#[test]
fn hot_extents_of_the_log_are_named() {
    let fixture = Fixture::new();
    let path = fixture.area(3, |_| {});
    let record = LogRecord {
        log_epoch: 1,
        number: 1,
        updates: [7, 8, 9]
            .map(|extent| (extent as u16, Some(ExtentIndex(extent))))
            .into_iter()
            .chain([(20, None)])
            .collect(),
        // The window goes on at slot 0 after the last one.
        context_first: 6431,
        context: [None, Some(20), None, Some(21)]
            .map(|extent| extent.map(ExtentIndex))
            .to_vec(),
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("a file");
    file.write_all_at(&record.encode(), 2 * 4096)
        .expect("space");
    let text = text(&inspect(&[], &[&path]));
    for part in [
        "extents          7-9, 20-21",
        "block 1          number 1, log epoch 1, 4 updates, context of 4 slots from slot 6431",
        "slot=extent    7=7 8=8 9=9 20=empty",
        "context        6432=20 1=21",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let value = json(&path, &[]);
    assert_eq!(
        value["activity_log"]["extents"],
        serde_json::json!([7, 8, 9, 20, 21])
    );
    assert_eq!(value["activity_log"]["next_number"], 2);
    let record = &value["activity_log"]["ring"][1];
    assert_eq!(record["number"], 1);
    assert_eq!(
        record["updates"][0],
        serde_json::json!({ "slot": 7, "extent": 7 })
    );
    assert_eq!(record["updates"][3]["extent"], Value::Null);
    assert_eq!(record["context"], serde_json::json!([null, 20, null, 21]));
}

#[test]
fn damage_is_named_and_fails_the_check() {
    let fixture = Fixture::new();
    for (offset, message) in [
        (
            65 * 4096 + 50,
            "superblock copy B: its checksum does not match",
        ),
        (
            (66 + 3) * 4096 + 500,
            "1 bitmap pages are bad, and all their blocks count as dirty: 3",
        ),
        (9 * 4096 + 5, "a transaction of the activity log is lost"),
    ] {
        let path = fixture.area(3, |_| {});
        spoil(&path, offset);
        let output = inspect(&["--check"], &[&path]);
        assert_eq!(output.status.code(), Some(1));
        let text = text(&output);
        assert!(text.contains(message), "{message} is missing in\n{text}");
    }
}

#[test]
fn two_bad_superblocks_are_explained() {
    let fixture = Fixture::new();
    let path = fixture.area(3, |_| {});
    spoil(&path, 50);
    spoil(&path, 65 * 4096 + 50);
    let output = inspect(&[], &[&path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("both superblock copies are bad"));
    assert_eq!(json(&path, &[])["valid"], false);
}

#[test]
fn a_file_without_metadata_is_refused_with_the_next_step() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("empty");
    fs::write(&path, vec![0; 1 << 20]).expect("space");
    let output = inspect(&[], &[&path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("mirrorctl init"));

    let output = inspect(&["--internal"], &[&path]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("no internal metadata was found"),
        "{message}"
    );

    let missing = inspect(&[], &[&fixture.folder.path().join("missing")]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        inspect(&["--no-such-flag"], &[&path]).status.code(),
        Some(2)
    );
}

#[test]
fn internal_metadata_is_found_also_after_the_file_grew() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("data");
    let place = placement(512 * MIB + 12_288).expect("large enough");
    fixture.write(&path, place.area_offset(), 3, place.usable_bytes, |_| {});
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("a file");
    for device_bytes in [512 * MIB + 12_288, 700 * MIB, 5000 * MIB] {
        file.set_len(device_bytes).expect("sparse");
        let value = json(&path, &["--internal"]);
        assert_eq!(value["internal_offset"], place.area_offset());
        assert_eq!(value["valid"], true);
    }
}

#[test]
fn the_rule_against_the_other_node_is_named() {
    let fixture = Fixture::new();
    let mine = fixture.area(3, |superblock| {
        superblock.generations.advance(Generation(6));
    });
    let theirs = fixture.area(4, |_| {});
    let against = |mine: &Path, theirs: &Path| {
        let theirs = theirs.to_str().expect("a plain path").to_owned();
        json(mine, &["--against", &theirs])
    };
    let value = against(&mine, &theirs);
    assert_eq!(value["handshake"]["rule"], "went-on-alone");
    assert_eq!(value["handshake"]["strategy"], "Source(Bitmap)");
    let value = against(&theirs, &mine);
    assert_eq!(value["handshake"]["rule"], "went-on-alone");
    assert_eq!(value["handshake"]["strategy"], "Target(Bitmap)");

    let theirs = fixture.area(4, |superblock| {
        superblock.generations.advance(Generation(7));
    });
    let value = against(&mine, &theirs);
    assert_eq!(value["handshake"]["rule"], "split-brain");
}

#[test]
fn metadata_of_another_mirror_or_the_same_node_is_not_compared() {
    let fixture = Fixture::new();
    let mine = fixture.area(3, |_| {});
    let other = fixture.area(4, |superblock| superblock.mirror = Uuid([9; 16]));
    for (theirs, message) in [(&other, "different mirrors"), (&mine, "of the same node")] {
        let output = Command::new(env!("CARGO_BIN_EXE_mirror-inspect"))
            .arg(&mine)
            .arg("--against")
            .arg(theirs)
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_check_against_the_other_node_prints_the_rule_too() {
    let fixture = Fixture::new();
    let mine = fixture.area(3, |superblock| {
        superblock.generations.advance(Generation(6));
    });
    let theirs = fixture.area(4, |_| {});
    let theirs = theirs.to_str().expect("a plain path");
    let output = inspect(&["--check", "--against", theirs], &[&mine]);
    assert!(output.status.success());
    let text = text(&output);
    assert!(
        text.contains("every check passed")
            && text.contains("handshake rule went-on-alone: this node is source"),
        "{text}"
    );
}

#[test]
fn the_two_nodes_may_keep_their_metadata_in_different_places() {
    let fixture = Fixture::new();
    let by_itself = fixture.area(3, |_| {});
    let internal = fixture.folder.path().join("data");
    let place = placement(512 * MIB).expect("large enough");
    fixture.write(
        &internal,
        place.area_offset(),
        4,
        place.usable_bytes,
        |_| {},
    );
    fs::OpenOptions::new()
        .write(true)
        .open(&internal)
        .expect("a file")
        .set_len(512 * MIB)
        .expect("sparse");
    let [a, b] = [&by_itself, &internal].map(|path| path.to_str().expect("a plain path"));
    let value = json(&by_itself, &["--against", b, "--against-internal"]);
    assert_eq!(value["handshake"]["rule"], "same-generation-tie");
    let value = json(&internal, &["--internal", "--against", a]);
    assert_eq!(value["handshake"]["rule"], "same-generation-tie");
}
