//! Programs of the host for the guest, with the libraries that they need.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::host::Result;
use crate::initramfs::Archive;

/// Adds programs where they are on the host, and their libraries beside them.
///
/// # Errors
/// One is not installed, or ldd(1) does not know it.
pub fn pack(tools: &[&str], archive: &mut Archive) -> Result<()> {
    let mut paths = BTreeSet::new();
    for tool in tools {
        let output = Command::new("ldd").arg(tool).output()?;
        if !output.status.success() {
            return Err(format!("ldd {tool}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        paths.insert((*tool).to_owned());
        paths.extend(libraries(&String::from_utf8(output.stdout)?));
    }
    let mut directories = BTreeSet::new();
    for path in paths {
        let target = merged(&path);
        let parents = Path::new(&target).ancestors().skip(1).map(Path::to_owned);
        let mut new: Vec<_> = parents.filter(|dir| directories.insert(dir.clone())).collect();
        new.reverse();
        for dir in new.iter().filter_map(|dir| dir.to_str()).filter(|dir| !dir.is_empty()) {
            // Which may be there: the kernel takes it again.
            archive.directory(dir);
        }
        archive.file(&target, &std::fs::read(&path)?);
    }
    Ok(())
}

/// The paths in what ldd(1) prints: `name => /path (address)`, or `/path (address)` for the loader.
fn libraries(printed: &str) -> Vec<String> {
    let paths = printed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(str::to_owned).collect()
}

/// Where it is in a tree whose `/lib` and `/bin` are links into `/usr`.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints() {
        let printed =
            "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(libraries(printed), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
        assert_eq!(merged("/lib64/ld.so.2"), "usr/lib64/ld.so.2");
        assert_eq!(merged("/usr/sbin/mkfs.ext4"), "usr/sbin/mkfs.ext4");
    }
}
