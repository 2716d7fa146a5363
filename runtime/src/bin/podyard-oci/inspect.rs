//! What there is: `state`, `list`, `ps`.

use std::os::unix::fs::MetadataExt;

use runtime::state::{Directory, State, Status};
use runtime::{Error, Result};
use serde_json::{Value, json};

use crate::options::Command;
use crate::store::{cgroup_of, find, io, print};

/// `state`: one container, as the specification has it, with what runc adds.
pub fn state(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    print(format_args!("{:#}", describe(&directory, &state)?))
}

fn describe(directory: &Directory, state: &State) -> Result<Value> {
    let status = directory.status(state)?;
    let pid = if status == Status::Stopped { 0 } else { state.pid };
    let mut shown = state.identity(&directory.spec()?).state(status, Some(pid));
    shown["rootfs"] = json!(state.rootfs);
    shown["created"] = json!(state.created);
    shown["owner"] = json!(owner(directory));
    Ok(shown)
}

/// The name of whom the state directory belongs to, by the host's own file of users; or the number.
fn owner(directory: &Directory) -> String {
    let Ok(uid) = std::fs::metadata(directory.path()).map(|found| found.uid()) else {
        return String::new();
    };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_string())
    });
    named.unwrap_or_else(|| uid.to_string())
}

/// `list`: all containers below the root directory.
pub fn list(command: &Command) -> Result<()> {
    let root = command.root();
    let mut names: Vec<String> = match std::fs::read_dir(&root) {
        // Nothing was ever made there; but one that is named is there, or it is a slip.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !command.has("--root") => Vec::new(),
        other => {
            let entries = other.map_err(io(&root))?.collect::<Result<Vec<_>, _>>().map_err(io(&root))?;
            let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
            // What begins with a dot is no container's.
            names.filter(|name| !name.starts_with('.')).collect()
        }
    };
    names.sort();
    let mut all = Vec::new();
    for name in names {
        let directory = Directory::of(&root, &name)?;
        // One whose create is under way or was cut short has no state to show.
        if let Ok(state) = directory.state() {
            all.push(describe(&directory, &state)?);
        }
    }
    match (command.has("--quiet"), command.value("--format").unwrap_or("table")) {
        (true, _) => all.iter().try_for_each(|one| print(text(&one["id"]))),
        (false, "json") => {
            let all: Vec<Ordered> = all.iter().map(Ordered).collect();
            print(json_text(&all)?)
        }
        (false, "table") => {
            let rows = all.iter().map(|one| {
                ["id", "pid", "status", "bundle", "created", "owner"].map(|field| text(&one[field])).to_vec()
            });
            table(&["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], rows.collect())
        }
        (false, other) => Err(Error::invalid("--format", format!("{other:?} is neither table nor json"))),
    }
}

/// A container's fields in the order in which runc writes them: some callers read them with a pattern.
struct Ordered<'a>(&'a Value);

impl serde::Serialize for Ordered<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let fields =
            ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"];
        serializer.collect_map(fields.iter().filter_map(|name| Some((name, self.0.get(name)?))))
    }
}

fn json_text(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::new(runtime::Kind::Internal, e.to_string()))
}

/// `ps`: the container's processes, as this PID namespace numbers them.
pub fn ps(command: &Command) -> Result<()> {
    let (_, state) = find(command)?;
    let mut pids = cgroup_of(&state)?.pids()?;
    pids.sort_unstable();
    match command.value("--format").unwrap_or("table") {
        "json" => print(json!(pids)),
        "table" => {
            let rows = pids.into_iter().filter_map(process_row);
            table(&["UID", "PID", "PPID", "S", "RSS", "CMD"], rows.collect())
        }
        other => Err(Error::invalid("--format", format!("{other:?} is neither table nor json"))),
    }
}

/// One process; `None` if it ended meanwhile. proc_pid_status(5).
fn process_row(pid: i32) -> Option<Vec<String>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("-").to_string()
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let words = words.join(" ");
    let shown =
        if words.trim().is_empty() { format!("[{}]", field("Name:")) } else { words.trim().to_string() };
    Some(vec![field("Uid:"), pid.to_string(), field("PPid:"), field("State:"), field("VmRSS:"), shown])
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn table(heads: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
    let heads: Vec<String> = heads.iter().map(|head| head.to_string()).collect();
    let width = |at: usize| rows.iter().chain([&heads]).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for row in [&heads].into_iter().chain(&rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        print(cells.join("   ").trim_end())?;
    }
    Ok(())
}
