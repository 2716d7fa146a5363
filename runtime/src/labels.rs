//! AppArmor profiles and SELinux labels: what the kernel is to confine the program with, from execve on.
//!
//! Each is written to the process's own directory of a procfs that nobody else has mounted: a file of another's put in
//! its place would take the label and leave the program unconfined (CVE-2019-16884, CVE-2023-28642). A kernel without
//! the module refuses by name; nothing runs unconfined that was not meant to.
//!
//! Source: kernel, Documentation/admin-guide/LSM/apparmor.rst, security/apparmor/lsm.c; selinux(8).
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use oci_spec::runtime::Process;

use crate::error::{Call, Error, Kind, Result, Step};
use crate::process::{open_in, own_file};

/// What the spec asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

impl Labels {
    /// Checks the spec's process.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub(crate) fn from_spec(process: &Process) -> Result<Self> {
        let text = |field: &str, text: &Option<String>| -> Result<Option<String>> {
            let text = text.clone().filter(|text| !text.is_empty());
            match text {
                Some(text) if text.contains(['\0', '\n']) => {
                    Err(Error::invalid(format!("process.{field}"), "contains NUL or a line's end"))
                }
                text => Ok(text),
            }
        };
        Ok(Self {
            apparmor: text("apparmorProfile", process.apparmor_profile())?,
            selinux: text("selinuxLabel", process.selinux_label())?,
        })
    }

    /// Has the kernel take them at the next execve.
    ///
    /// # Errors
    /// `Unsupported` without the module; `EINVAL` and the like for an unknown profile.
    pub(crate) fn apply(&self, proc: BorrowedFd<'_>) -> Result<()> {
        if let Some(profile) = &self.apparmor {
            let set = || match own_file(proc, "attr/apparmor/exec") {
                Err(e) if e.kind() == Kind::NotFound => {
                    Err(Error::unsupported("process.apparmorProfile", "this kernel runs without AppArmor"))
                }
                file => write(&file?, &format!("exec {profile}")),
            };
            set().step(format!("confine by AppArmor profile {profile}"))?;
        }
        if let Some(label) = &self.selinux {
            let set = || match selinux(proc)? {
                false => Err(Error::unsupported("process.selinuxLabel", "this kernel runs without SELinux")),
                true => write(&own_file(proc, "attr/exec")?, label),
            };
            set().step(format!("confine by SELinux label {label}"))?;
        }
        Ok(())
    }
}

/// Whether SELinux is on: only then does it have its filesystem.
pub(crate) fn selinux(proc: BorrowedFd<'_>) -> Result<bool> {
    let file = open_in(proc, "filesystems".as_ref(), rustix::fs::OFlags::RDONLY)?;
    let text = std::io::read_to_string(std::fs::File::from(file)).call(|| "read(filesystems)".into())?;
    Ok(text.lines().any(|line| line.split_whitespace().last() == Some("selinuxfs")))
}

fn write(file: &std::os::fd::OwnedFd, text: &str) -> Result<()> {
    rustix::io::write(file, text.as_bytes()).call(|| format!("write(attr, {text:?})")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_are_one_line() {
        let parse = |field: &str, text: &str| {
            let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"], field: text});
            Labels::from_spec(&serde_json::from_value(process).unwrap())
        };
        assert_eq!(parse("apparmorProfile", "").unwrap(), Labels::default());
        assert_eq!(parse("apparmorProfile", "p").unwrap().apparmor.as_deref(), Some("p"));
        assert_eq!(parse("selinuxLabel", "a:b").unwrap().selinux.as_deref(), Some("a:b"));
        for field in ["apparmorProfile", "selinuxLabel"] {
            let error = parse(field, "a\nchangeprofile b").unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
