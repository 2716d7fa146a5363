//! Compiled filters kept on disk, because engines give every container the same profile.
//!
//! ```text
//!   <directory>/<16 hex>   0600, owned by the user that runs this; one profile and its program
//!      magic · the compiler · lengths · the profile as JSON · the program · a checksum of all before
//! ```
//!
//! The name is a hash, but no hash is trusted: the whole profile is in the file, and compared. A file of another owner
//! or mode, of another compiler or architecture, too long, cut or changed is taken for none. What is written appears
//! whole. There are at most [`FILES_MAX`]; then all go, and what is needed comes back.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags, open};

use super::{Filter, Instruction};
use crate::error::{Call, Error, Kind, Result};

/// How many filters are kept.
const FILES_MAX: usize = 64;

/// The longest file: a profile of some thousand names and a program of 4096 instructions.
const BYTES_MAX: u64 = 256 << 10;

const MAGIC: &[u8] = b"podyard seccomp filter\n";

/// The compiler that made the program, by a hash of its source: another one's work is not used.
const COMPILER: u64 = {
    let arch = if cfg!(target_arch = "x86_64") { 1 } else { 2 };
    let sources: [&[u8]; 4] = [
        include_bytes!("mod.rs"),
        include_bytes!("compile.rs"),
        include_bytes!("foreign.rs"),
        include_bytes!("syscalls.rs"),
    ];
    let (mut sum, mut file) = (0xcbf2_9ce4_8422_2325 ^ arch, 0);
    while file < sources.len() {
        let mut at = 0;
        while at < sources[file].len() {
            sum = (sum ^ sources[file][at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        file += 1;
    }
    sum
};

/// A directory of compiled filters.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// In `directory`, which is made when there is something to keep.
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// The profile's filter, compiled now or before. That it cannot be kept is a warning.
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn filter(&self, profile: &LinuxSeccomp, warnings: &mut Vec<String>) -> Result<Filter> {
        let json = serde_json::to_vec(profile).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        let path = self.0.join(format!("{:016x}", hash(&json)));
        if let Some(program) = read(&path).and_then(|bytes| program_of(&bytes, &json)) {
            return Filter::around(profile, program);
        }
        let before = warnings.len();
        let filter = Filter::compile(profile, warnings)?;
        // One with a warning is compiled every time, so that it warns every time.
        if warnings.len() == before
            && let Err(e) = self.keep(&path, &file_of(&json, filter.program()))
        {
            warnings.push(format!("seccomp filter not kept: {e}"));
        }
        Ok(filter)
    }

    fn keep(&self, path: &std::path::Path, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > BYTES_MAX {
            return Ok(());
        }
        let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.0);
        made.call(|| format!("mkdir({:?})", self.0))?;
        let entries = std::fs::read_dir(&self.0).call(|| format!("readdir({:?})", self.0))?;
        let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        if files.len() >= FILES_MAX {
            for file in files {
                match std::fs::remove_file(&file) {
                    // Another one clears up too.
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).call(|| format!("unlink({file:?})"));
                    }
                    _ => {}
                }
            }
        }
        let new = path.with_extension(format!("new{}", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(&new, flags, Mode::RUSR | Mode::WUSR).call(|| format!("open({new:?}, O_EXCL)"))?;
        let written = std::io::Write::write_all(&mut std::fs::File::from(fd), bytes)
            .and_then(|()| std::fs::rename(&new, path));
        written.call(|| format!("write({new:?})")).inspect_err(|_| {
            // It has said what is wrong.
            match std::fs::remove_file(&new) {
                Ok(()) | Err(_) => {}
            }
        })
    }
}

/// A file that only we can have written.
fn read(path: &std::path::Path) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd: OwnedFd = open(path, flags, Mode::empty()).ok()?;
    let file = std::fs::File::from(fd);
    let meta = file.metadata().ok()?;
    let ours =
        meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o7777 == 0o600;
    if !ours || meta.len() > BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize + 1);
    file.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn file_of(json: &[u8], program: &[Instruction]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(COMPILER.to_le_bytes());
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend((program.len() as u32).to_le_bytes());
    bytes.extend(json);
    for i in program {
        bytes.extend(i.code.to_le_bytes());
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_le_bytes());
    }
    let sum = hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The program in a file, if it is this profile's and nothing is missing or changed.
fn program_of(bytes: &[u8], json: &[u8]) -> Option<Vec<Instruction>> {
    let (body, sum) = bytes.split_last_chunk::<8>()?;
    let (compiler, rest) = body.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let (json_len, rest) = rest.split_first_chunk::<4>()?;
    let (program_len, rest) = rest.split_first_chunk::<4>()?;
    let (profile, code) = rest.split_at_checked(u32::from_le_bytes(*json_len) as usize)?;
    let whole = code.len() == (u32::from_le_bytes(*program_len) as usize).checked_mul(8)?;
    if u64::from_le_bytes(*compiler) != COMPILER
        || profile != json
        || !whole
        || code.is_empty()
        || u64::from_le_bytes(*sum) != hash(body)
    {
        return None;
    }
    let instruction = |i: &[u8]| Instruction {
        code: u16::from_le_bytes([i[0], i[1]]),
        jt: i[2],
        jf: i[3],
        k: u32::from_le_bytes([i[4], i[5], i[6], i[7]]),
    };
    Some(code.chunks_exact(8).map(instruction).collect())
}

/// FNV-1a, by words: for names and against accidents, not against an enemy, who would have to be this user.
fn hash(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("podyard-test-cache-{name}-{}", std::process::id())))
        }

        fn files(&self) -> Vec<PathBuf> {
            std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn profile(name: &str) -> LinuxSeccomp {
        let call = serde_json::json!({"names": [name], "action": "SCMP_ACT_ALLOW"});
        serde_json::from_value(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]}))
            .unwrap()
    }

    fn filter(cache: &Cache, profile: &LinuxSeccomp) -> Filter {
        let mut warnings = Vec::new();
        let filter = cache.filter(profile, &mut warnings).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        filter
    }

    /// Makes the kept program another one, whole and well summed: so a test sees whether it was taken.
    fn forge(path: &std::path::Path, profile: &LinuxSeccomp) -> Vec<Instruction> {
        let forged = vec![Instruction { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }];
        std::fs::write(path, file_of(&serde_json::to_vec(profile).unwrap(), &forged)).unwrap();
        forged
    }

    #[test]
    fn kept_and_found_again() {
        let directory = Directory::new("again");
        let cache = Cache::at(directory.0.clone());
        let compiled = Filter::compile(&profile("read"), &mut Vec::new()).unwrap();
        assert_eq!(filter(&cache, &profile("read")), compiled);
        assert_eq!(filter(&cache, &profile("read")), compiled);
        assert_ne!(filter(&cache, &profile("write")), compiled);
        assert_eq!(directory.files().len(), 2);
    }

    #[test]
    fn only_what_is_ours_and_whole_is_taken() {
        let directory = Directory::new("whole");
        let (cache, profile) = (Cache::at(directory.0.clone()), profile("read"));
        let compiled = filter(&cache, &profile);
        let path = directory.files().remove(0);
        let forged = forge(&path, &profile);
        assert_eq!(filter(&cache, &profile).program(), forged, "a whole file is taken: this test sees it");
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            assert_eq!(filter(&cache, &profile), compiled, "byte {at} changed");
            std::fs::write(&path, &good[..at]).unwrap();
            assert_eq!(filter(&cache, &profile), compiled, "cut at {at}");
        }
        forge(&path, &profile);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(filter(&cache, &profile), compiled, "others may write it");
        // Which was written anew, as ours.
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(filter(&cache, &profile), compiled, "a link");
    }

    #[test]
    fn at_most_so_many() {
        let directory = Directory::new("many");
        let cache = Cache::at(directory.0.clone());
        for errno in 0..FILES_MAX as u32 + 10 {
            let call =
                serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno + 2});
            let document = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]});
            filter(&cache, &serde_json::from_value(document).unwrap());
            assert!(directory.files().len() <= FILES_MAX);
        }
    }
}
