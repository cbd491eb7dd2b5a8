//! File systems of this machine are mounted and taken down, whoever uses them. Needs root.

mod ground;

use std::process::Stdio;
use std::time::Duration;

use agent::io::blocking::Slot;
use agent::io::resource::mirror_disk::{MirrorDiskError, Tries, check_ext4, mount, unmount};
use agent::io::resource::mounts;
use local_disks::LoopDisk;
use nbd_frontend::config::agent::Filesystem;

use ground::{Killed, LIMIT, wait_until};

const TRIES: Tries = Tries {
    count: 1,
    interval: Duration::from_millis(10),
};

async fn is_mounted(image: &LoopDisk) -> bool {
    mounts::at(&mounts::mounted().unwrap(), &image.point()).is_some()
}

async fn mounted() -> LoopDisk {
    let image = LoopDisk::with_ext4(16 << 20).unwrap();
    check_ext4(image.device(), true, LIMIT).await.unwrap();
    mount(Filesystem::Ext4, "noatime", image.device(), &image.point())
        .await
        .unwrap();
    assert!(is_mounted(&image).await);
    image
}

#[tokio::test]
async fn a_file_system_that_nobody_uses_comes_down_at_once() {
    let image = mounted().await;
    unmount(&Slot::default(), &image.point(), TRIES, false)
        .await
        .unwrap();
    assert!(!is_mounted(&image).await);
    check_ext4(image.device(), false, LIMIT).await.unwrap();
}

#[tokio::test]
async fn users_are_asked_to_end_before_they_are_killed() {
    let image = mounted().await;
    let mut polite = Killed::spawn(
        "sh",
        &[
            "-c",
            "trap 'exit 7' TERM; touch polite; while :; do sleep 0.01; done",
        ],
        &image.point(),
    );
    let mut deaf = Killed::spawn(
        "sh",
        &[
            "-c",
            "trap '' TERM; touch deaf; while :; do sleep 0.01; done",
        ],
        &image.point(),
    );
    wait_until(|| ["polite", "deaf"].map(|name| image.point().join(name).exists()) == [true; 2])
        .await;
    unmount(&Slot::default(), &image.point(), TRIES, false)
        .await
        .unwrap();
    assert!(!is_mounted(&image).await);
    assert_eq!(polite.0.wait().unwrap().code(), Some(7));
    assert_eq!(deaf.0.wait().unwrap().code(), None);
}

#[tokio::test]
async fn a_forced_unmount_kills_at_once_what_has_a_file_open_or_mapped() {
    let image = mounted().await;
    let file = image.point().join("file");
    let mut writer = Killed(
        ground::mortal("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&file).unwrap())
            .spawn()
            .unwrap(),
    );
    let program = image.point().join("sleep");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let mut runner = Killed::spawn(program.to_str().unwrap(), &["1000"], "/".as_ref());
    let image_of_runner = format!("/proc/{}/exe", runner.0.id());
    wait_until(|| std::fs::read_link(&image_of_runner).is_ok_and(|found| found == program)).await;
    unmount(&Slot::default(), &image.point(), TRIES, true)
        .await
        .unwrap();
    assert!(!is_mounted(&image).await);
    for user in [&mut writer, &mut runner] {
        assert_eq!(user.0.wait().unwrap().code(), None);
    }
}

#[tokio::test]
async fn what_is_mounted_below_comes_down_too() {
    let image = mounted().await;
    let below = image.point().join("below");
    std::fs::create_dir(&below).unwrap();
    ground::run("mount", &["-t", "tmpfs", "tmpfs", below.to_str().unwrap()]);
    unmount(&Slot::default(), &image.point(), TRIES, false)
        .await
        .unwrap();
    assert!(!is_mounted(&image).await);
}

#[tokio::test]
async fn this_process_is_named_as_a_user_and_never_killed() {
    let image = mounted().await;
    let file = std::fs::File::create(image.point().join("file")).unwrap();
    let error = unmount(&Slot::default(), &image.point(), TRIES, true)
        .await
        .unwrap_err();
    let MirrorDiskError::Busy { users, .. } = &error else {
        panic!("{error}");
    };
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(users.iter().any(|user| user.pid == own), "{error}");
    assert!(error.to_string().contains("it has a file open"), "{error}");
    drop(file);
    unmount(&Slot::default(), &image.point(), TRIES, false)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_damaged_file_system_is_not_mounted_and_its_device_is_named() {
    let image = LoopDisk::with_ext4(16 << 20).unwrap();
    // The group descriptors and everything behind them.
    image.overwrite(2048, 4 << 20).unwrap();
    let error = check_ext4(image.device(), true, LIMIT).await.unwrap_err();
    assert!(
        matches!(
            error,
            MirrorDiskError::Damaged { .. } | MirrorDiskError::Fsck { .. }
        ),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(image.device()), "{text}");
    assert!(text.contains("e2fsck -f"), "{text}");
    let error = mount(Filesystem::Xfs, "", image.device(), &image.point())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("was not mounted on"), "{error}");
}
