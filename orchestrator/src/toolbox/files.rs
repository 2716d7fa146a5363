//! Applets on files and the process itself.

use super::{Outcome, take_flag};
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT, at most for `limit`; the exit code as a shell would say it.
pub(super) async fn stopped_within(limit: Option<Duration>) -> Result<Option<ExitCode>, String> {
    let mut term = signal(SignalKind::terminate()).map_err(|e| format!("handle SIGTERM: {e}"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| format!("handle SIGINT: {e}"))?;
    let timer = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = term.recv() => Ok(Some(ExitCode::SUCCESS)),
        _ = int.recv() => Ok(Some(ExitCode::from(130))),
        () = timer => Ok(None),
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("start an event loop: {e}"))?
        .block_on(future)
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
        .ok_or_else(|| format!("{text:?} is not a number of seconds"))
}

pub(super) fn sleep(args: &[String]) -> Outcome {
    let limit = match args {
        [word] if word == "infinity" => None,
        [word] => Some(seconds(word)?),
        _ => return Err("takes one number of seconds, or infinity".into()),
    };
    Ok(block_on(stopped_within(limit))?.unwrap_or(ExitCode::SUCCESS))
}

pub(super) fn write(args: &[String]) -> Outcome {
    let mut args = args.to_vec();
    let every = take_flag(&mut args, "--every")?.map(|text| seconds(&text)).transpose()?;
    let [file, text] = args.as_slice() else { return Err("takes FILE and TEXT".into()) };
    block_on(async {
        loop {
            // A rename, so that a reader never sees half a file.
            let fresh = format!("{file}.new");
            fs::write(&fresh, format!("{text} {}\n", jiff::Timestamp::now()))
                .and_then(|()| fs::rename(&fresh, file))
                .map_err(|e| format!("write {file}: {e}"))?;
            let Some(every) = every else { return Ok(ExitCode::SUCCESS) };
            if let Some(code) = stopped_within(Some(every)).await? {
                return Ok(code);
            }
        }
    })
}

pub(super) fn cat(args: &[String]) -> Outcome {
    let mut out = std::io::stdout();
    for file in args {
        let bytes = fs::read(file).map_err(|e| format!("read {file}: {e}"))?;
        out.write_all(&bytes).map_err(|e| format!("write to stdout: {e}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn ls(args: &[String]) -> Outcome {
    let dir = args.first().map_or(".", String::as_str);
    let mut names = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect::<Result<Vec<_>, _>>())
        .map_err(|e| format!("list {dir}: {e}"))?;
    names.sort();
    for name in names {
        println!("{}", name.to_string_lossy());
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn echo(args: &[String]) -> Outcome {
    println!("{}", args.join(" "));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn env(_: &[String]) -> Outcome {
    for (name, value) in std::env::vars_os() {
        println!("{}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn hostname(_: &[String]) -> Outcome {
    println!("{}", own_hostname());
    Ok(ExitCode::SUCCESS)
}

/// The UTS namespace's node name. Source: uname(2).
pub(super) fn own_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(super) fn exit(args: &[String]) -> Outcome {
    match args {
        [code] => code.parse::<u8>().map(ExitCode::from).map_err(|_| format!("{code:?} is not in 0..=255")),
        _ => Err("takes one exit code".into()),
    }
}

pub(super) fn test(args: &[String]) -> Outcome {
    match args {
        [flag, file] if flag == "-e" => {
            Ok(if fs::metadata(file).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        _ => Err("takes -e FILE".into()),
    }
}

pub(super) fn mem(args: &[String]) -> Outcome {
    let [bytes] = args else { return Err("takes a number of bytes".into()) };
    let bytes: usize = bytes.parse().map_err(|_| format!("{bytes:?} is not a number of bytes"))?;
    let mut held = vec![0u8; bytes];
    for page in held.chunks_mut(4096) {
        page[0] = 1;
    }
    println!("holding {bytes} bytes");
    let code = block_on(stopped_within(None))?;
    drop(std::hint::black_box(held));
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}
