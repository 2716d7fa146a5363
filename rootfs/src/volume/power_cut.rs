//! Power cuts: the volumes live on a disk of their own, an image; at the n-th step everything stops, and what was
//! written to the image by then is mounted elsewhere. What only the page cache had is lost.
//!
//! The kernel recovers the image's journal, so these tests also show that images made here survive a cut themselves.

use super::*;
use crate::files::fault::crash_after;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const DISK: &str = "disk";

/// A disk, mounted nowhere but in a descriptor.
struct Disk {
    dir: PathBuf,
    mount: OwnedFd,
}

impl Disk {
    fn owner() -> Claim {
        Claim { uid: "disk".into(), epoch: 1 }
    }

    fn new(dir: &Path) -> Disk {
        drop(fs::remove_dir_all(dir));
        let wish = Wish { size_bytes: 32 << 20, enforcement: Enforcement::Loop };
        Volumes::new(dir).ensure(DISK, &Disk::owner(), wish).unwrap();
        Disk::mount(dir)
    }

    fn mount(dir: &Path) -> Disk {
        let image = dir.join(DISK).join(IMAGE_FILE);
        let mount = claimed_fd(&image, &Disk::owner(), None, BindAccess::ReadWrite).unwrap();
        Disk { dir: dir.to_owned(), mount }
    }

    fn volumes(&self) -> Volumes {
        Volumes::new(format!("/proc/self/fd/{}/volumes", self.mount.as_raw_fd()))
    }

    /// The disk as it is without power: what reached the image, and not one write more.
    fn cut(&self, to: &Path) -> Disk {
        drop(fs::remove_dir_all(to));
        let (from, home) = (self.dir.join(DISK), to.join(DISK));
        fs::create_dir_all(&home).unwrap();
        fs::copy(from.join(CLAIM_FILE), home.join(CLAIM_FILE)).unwrap();
        copy_sparse(&from.join(IMAGE_FILE), &home.join(IMAGE_FILE));
        Disk::mount(to)
    }
}

fn copy_sparse(from: &Path, to: &Path) {
    use rustix::fs::{SeekFrom, seek};
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let end = from.metadata().unwrap().len();
    to.set_len(end).unwrap();
    let mut at = 0;
    while let Ok(data) = seek(&from, SeekFrom::Data(at)) {
        at = seek(&from, SeekFrom::Hole(data)).unwrap();
        let mut bytes = vec![0; (at - data) as usize];
        from.read_exact_at(&mut bytes, data).unwrap();
        to.write_all_at(&bytes, data).unwrap();
    }
}

fn claim(uid: &str, epoch: u64) -> Claim {
    Claim { uid: uid.into(), epoch }
}

fn deletion() -> Deletion {
    Deletion { name: "v".into(), deleted_at_secs: 1, expires_at_secs: 2, about: serde_json::Value::Null }
}

/// Every volume there is whole: it has its record, and its data is its owner's.
fn check_whole(volumes: &Volumes) {
    for volume in volumes.list().unwrap() {
        let Some(owner) = &volume.claim else { continue };
        drop(claimed_fd(&volume.source, owner, None, BindAccess::ReadWrite).unwrap());
    }
    volumes.trash().list().unwrap();
}

/// Cuts the power after each step of `work`, which begins where `before` has led. `done` is what holds once it is
/// acknowledged; the work must also be possible after the cut.
fn cut_everywhere(
    name: &str,
    before: impl Fn(&Volumes),
    work: impl Fn(&Volumes) -> Result<(), Error>,
    done: impl Fn(&Volumes) -> bool,
) {
    let base = std::env::temp_dir().join(format!("podyard-power-{name}-{}", std::process::id()));
    for steps in 0.. {
        let disk = Disk::new(&base.join("before"));
        before(&disk.volumes());
        let (outcome, crashed) = crash_after(steps, || work(&disk.volumes()));
        let after = disk.cut(&base.join("after"));
        let volumes = after.volumes();
        check_whole(&volumes);
        if outcome.is_ok() {
            assert!(done(&volumes), "{name}: acknowledged, and lost by a cut after {steps} steps");
        }
        volumes.sweep().unwrap();
        work(&volumes).unwrap();
        assert!(done(&volumes), "{name}: not possible after a cut after {steps} steps");
        if !crashed {
            break;
        }
    }
    drop(fs::remove_dir_all(base));
}

fn can_loop() -> bool {
    let can = rustix::process::geteuid().is_root() && loopfs::is_available().is_ok();
    if !can {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root and loop devices\n");
    }
    can
}

fn with(enforcement: Enforcement) -> Wish {
    Wish { size_bytes: 1 << 20, enforcement }
}

#[test]
fn root_a_volume_survives_a_power_cut_from_when_it_is_handed_out() {
    if !can_loop() {
        return;
    }
    for enforcement in [Enforcement::None, Enforcement::Loop] {
        let make = |volumes: &Volumes| volumes.ensure("v", &claim("a", 1), with(enforcement)).map(drop);
        cut_everywhere("make", |_| (), make, |volumes| volumes.open("v", &claim("a", 1)).is_ok());
    }
}

#[test]
fn root_epochs_and_sizes_survive_a_power_cut() {
    if !can_loop() {
        return;
    }
    let before =
        |volumes: &Volumes| drop(volumes.ensure("v", &claim("a", 1), with(Enforcement::Loop)).unwrap());
    let take = |volumes: &Volumes| volumes.ensure("v", &claim("a", 7), with(Enforcement::Loop)).map(drop);
    cut_everywhere("epoch", before, take, |volumes| volumes.open("v", &claim("a", 6)).is_err());
    let grow = |volumes: &Volumes| volumes.grow("v", "a", 5 << 20).map(drop);
    cut_everywhere("grow", before, grow, |volumes| volumes.get("v").unwrap().size_bytes == 5 << 20);
}

#[test]
fn root_the_way_to_the_trash_and_back_survives_a_power_cut() {
    if !can_loop() {
        return;
    }
    for enforcement in [Enforcement::None, Enforcement::Loop] {
        let before =
            |volumes: &Volumes| drop(volumes.ensure("v", &claim("a", 1), with(enforcement)).unwrap());
        let put = |volumes: &Volumes| volumes.trash().put("a", &deletion()).map(drop);
        let is_put = |volumes: &Volumes| volumes.get("v").is_err() && volumes.trash().get("v").is_ok();
        cut_everywhere("put", before, put, is_put);
        let before = |volumes: &Volumes| {
            before(volumes);
            put(volumes).unwrap();
        };
        let back = |volumes: &Volumes| {
            if volumes.trash().get("v").is_ok() {
                volumes.trash().take_back("v")?;
            }
            volumes.trash().forget("v")?;
            volumes.ensure("v", &claim("b", 1), with(enforcement)).map(drop)
        };
        cut_everywhere("back", before, back, |volumes| volumes.open("v", &claim("b", 1)).is_ok());
        let give_up = |volumes: &Volumes| {
            volumes.trash().give_up("v")?;
            volumes.trash().reap(&mut |_| ()).map(drop)
        };
        cut_everywhere("give-up", before, give_up, |volumes| {
            volumes.get("v").is_err() && volumes.trash().get("v").is_err()
        });
    }
}
