//! Where the process starts: the C library's entry point, without what Rust's runtime does before `main`.
//!
//! That is twice per command that enters a container, and costs a read of `/proc/self/maps` and a signal stack each
//! time. Three of its services are needed and done here: descriptors 0 to 2 are open, so that no file of ours gets such
//! a number; writing to a closed pipe is an error and not the end, half-way through; what was printed goes out.
#![allow(unsafe_code)]

use std::io::Write;

use nix::libc;

/// Source: library/std/src/sys/pal/unix/mod.rs, `init`; the arguments reach `std::env` by the loader.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    for fd in 0..3 {
        // SAFETY: F_GETFD takes no argument and touches no memory; the path is a NUL-terminated constant.
        unsafe {
            // The lowest number free, and those below are open: it is this one.
            if libc::fcntl(fd, libc::F_GETFD) < 0 && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) != fd {
                libc::_exit(1);
            }
        }
    }
    // SAFETY: SIG_IGN installs no function of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let code = crate::start();
    match std::io::stdout().flush() {
        Ok(()) => libc::c_int::from(code),
        Err(_) => libc::c_int::from(code.max(1)),
    }
}
