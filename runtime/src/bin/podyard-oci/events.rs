//! `events`: what a container uses, and when it runs out of memory.

use std::time::Duration;

use runtime::cgroup::Stats;
use runtime::state::Status;
use runtime::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::options::Command;
use crate::store::{cgroup_of, find, print};

/// How often statistics are shown unless told otherwise.
const INTERVAL: &str = "5s";

/// Shows statistics once (`--stats`), or at every interval until the container has stopped.
pub fn events(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    let interval = interval(command.value("--interval").unwrap_or(INTERVAL))?;
    let cgroup = cgroup_of(&state)?;
    let stats = || -> Result<()> {
        let data = shape(&cgroup.stats()?);
        print(json!({"type": "stats", "id": state.id, "data": data}))
    };
    if directory.status(&state)? == Status::Stopped {
        return Err(Error::new(Kind::Invalid, format!("container {} is not running", state.id)));
    }
    stats()?;
    if command.has("--stats") {
        return Ok(());
    }
    let mut known = cgroup.oom_kills()?;
    // The process's end is waited for, at most for one interval: no time is slept away.
    while let Some(pidfd) = state.process()? {
        let ended = runtime::pidfd::wait_exit(&pidfd, interval)?;
        let now = cgroup.oom_kills()?;
        for _ in known..now {
            print(json!({"type": "oom", "id": state.id}))?;
        }
        known = now;
        if !ended {
            stats()?;
        }
    }
    Ok(())
}

/// The names that runc gives the figures. Source: runc's types/events.go, field names only.
fn shape(stats: &Stats) -> Value {
    let (cpu, memory) = (&stats.cpu, &stats.memory);
    let entry = |data: &runtime::cgroup::MemoryData| json!({"limit": data.limit, "usage": data.usage, "max": data.max_usage, "failcnt": data.fail_count});
    let hugetlb: serde_json::Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|(size, page)| {
            (size.clone(), json!({"usage": page.usage, "max": page.max_usage, "failcnt": page.fail_count}))
        })
        .collect();
    let blkio = |list: &[runtime::cgroup::BlkioDeviceStat]| {
        let one = |stat: &runtime::cgroup::BlkioDeviceStat| json!({"major": stat.major, "minor": stat.minor, "op": stat.op_type, "value": stat.value});
        Value::from(list.iter().map(one).collect::<Vec<_>>())
    };
    json!({
        "cpu": {
            "usage": {
                "total": cpu.usage.usage_total,
                "percpu": cpu.usage.per_core_usage_total,
                "kernel": cpu.usage.usage_kernel,
                "user": cpu.usage.usage_user,
            },
            "throttling": {
                "periods": cpu.throttling.periods,
                "throttledPeriods": cpu.throttling.throttled_periods,
                "throttledTime": cpu.throttling.throttled_time,
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": entry(&memory.memory),
            "swap": entry(&memory.memswap),
            "kernel": entry(&memory.kernel),
            "kernelTCP": entry(&memory.kernel_tcp),
            "raw": memory.stats,
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": blkio(&stats.blkio.service_bytes),
            "ioServicedRecursive": blkio(&stats.blkio.serviced),
        },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// `5s`, `500ms`, `1m`.
fn interval(text: &str) -> Result<Duration> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000)];
    let parsed = units.iter().find_map(|(unit, millis)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*millis).map(Duration::from_millis)
    });
    parsed
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Error::invalid("--interval", format!("{text:?} is not like 5s or 500ms")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        for (text, millis) in
            [("5s", Some(5_000)), ("500ms", Some(500)), ("1m", Some(60_000)), ("0s", None), ("5", None)]
        {
            assert_eq!(interval(text).ok(), millis.map(Duration::from_millis), "{text}");
        }
    }
}
