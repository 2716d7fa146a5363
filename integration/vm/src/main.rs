//! `cargo vm [PACKAGE[:TEST[:FILTER]]…] [-- FILTER…]`: runs the kernel tests of packages in a virtual machine.
//!
//! ```text
//!   host  build the tests · unpack Debian's cloud kernel · make an initramfs · qemu, console here
//!   guest this same program as /init: modules, mounts, cgroup2 alone, the tests, power off
//! ```
//!
//! The default is `runtime:kernel`, `integration:limits` (a pod with limits), `rootfs:volumes:beyond` and `rootfs:lib:quota`: what
//! our own machines lack, `CAP_SYS_RESOURCE` and project quotas. `PODYARD_VM` is set in the guest: tests that know it skip
//! nothing there. The machine has no disk and no network card; its kernel is the newest `linux-image-cloud-amd64` of the
//! host's package lists, downloaded and unpacked under `target/vm`, never installed. It is emulated: no KVM needed.
//!
//! Further programs: `--file PATH[=NAME]` puts a file into the guest's `/usr/bin`, `--run 'NAME ARG…'`
//! runs it after the tests (with `--no-tests` instead of them): how a pod with limits is tried.

mod guest;
mod host;
mod initramfs;
mod sys;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() == 1 {
        guest::init();
    }
    match host::run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vm: {error}");
            ExitCode::FAILURE
        }
    }
}
