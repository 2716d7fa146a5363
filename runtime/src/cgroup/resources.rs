//! Limits as the spec has them → files and what to write there. Pure.
//!
//! A write names the spec's field, so that what this host lacks is refused by that name. Zero means "leave it" for
//! most fields, as engines write it; -1 means no limit.
//!
//! Source: runtime-spec, config-linux.md; cgroup-v1/*.rst; cgroup-v2.rst.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::devices_v1;
use crate::error::{Error, Result};

/// Which interface the host's limits have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// What must be known of the cgroup as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// The first word of v2's `cpu.max`.
    pub(super) quota: Option<String>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Below `linux.resources`.
    pub(super) field: String,
    pub(super) controller: String,
    /// File and value: the first whose file exists is written.
    pub(super) ways: Vec<(String, String)>,
    /// What is asked for is so anyway where the file is missing.
    pub(super) optional: bool,
}

/// Everything that is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) writes: Vec<Write>,
    /// On v2: refused if more than this is used already.
    pub(super) memory_bytes_at_most: Option<i64>,
    pub(super) warnings: Vec<String>,
}

impl Limits {
    /// What `resources` asks for.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming the field.
    pub(super) fn plan(resources: &LinuxResources, version: Version, observed: &Observed) -> Result<Self> {
        let mut limits = Self::default();
        if version == Version::V1
            && let Some(rules) = resources.devices()
        {
            for (file, value) in devices_v1::writes(rules)? {
                limits.add("devices", "devices", file, value);
            }
        }
        if let Some(memory) = resources.memory() {
            limits.memory(memory, version)?;
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu(cpu, version, observed)?;
        }
        if let Some(pids) = resources.pids()
            && pids.limit() != 0
        {
            limits.add("pids.limit", "pids", "pids.max", number_or_max(pids.limit()));
        }
        if let Some(block_io) = resources.block_io() {
            limits.block_io(block_io, version)?;
        }
        limits.rest(resources, version)?;
        Ok(limits)
    }

    fn add(&mut self, field: &str, controller: &str, file: impl Into<String>, value: impl ToString) {
        self.push(field, controller, vec![(file.into(), value.to_string())], false);
    }

    fn push(&mut self, field: &str, controller: &str, ways: Vec<(String, String)>, optional: bool) {
        let (field, controller) = (field.to_string(), controller.to_string());
        self.writes.push(Write { field, controller, ways, optional });
    }

    fn warn(&mut self, field: &str, reason: &str) {
        self.warnings.push(format!("linux.resources.{field}: {reason}"));
    }

    fn memory(&mut self, memory: &LinuxMemory, version: Version) -> Result<()> {
        for (field, value) in [
            ("memory.limit", memory.limit()),
            ("memory.reservation", memory.reservation()),
            ("memory.swap", memory.swap()),
        ] {
            if value.is_some_and(|v| v < -1) {
                return Err(invalid(field, "is below -1"));
            }
        }
        let (limit, mut swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
        // Without any limit of memory one of memory and swap together makes no sense.
        if limit == -1 && swap == 0 {
            swap = -1;
        }
        if swap > 0 && limit > swap {
            return Err(invalid("memory.swap", "counts memory and swap together, and is below the limit"));
        }
        match version {
            Version::V1 => self.memory_v1(memory, limit, swap)?,
            Version::V2 => self.memory_v2(memory, limit, swap)?,
        }
        for (field, set) in [
            ("memory.kernel", memory.kernel().is_some_and(|v| v > 0)),
            ("memory.kernelTCP", memory.kernel_tcp().is_some_and(|v| v > 0)),
        ] {
            if set {
                self.warn(field, "kernels count it as memory now; it has no limit of its own");
            }
        }
        Ok(())
    }

    fn memory_v1(&mut self, memory: &LinuxMemory, limit: i64, swap: i64) -> Result<()> {
        if limit != 0 {
            self.add("memory.limit", "memory", "memory.limit_in_bytes", limit);
        }
        if swap != 0 {
            let way = ("memory.memsw.limit_in_bytes".to_string(), swap.to_string());
            self.push("memory.swap", "memory", vec![way], swap == -1);
        }
        if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
            self.add("memory.reservation", "memory", "memory.soft_limit_in_bytes", reservation);
        }
        // Docker writes the largest number for "not set".
        if let Some(swappiness) = memory.swappiness().filter(|s| *s != u64::MAX) {
            if swappiness > 100 {
                return Err(invalid("memory.swappiness", "is above 100"));
            }
            self.add("memory.swappiness", "memory", "memory.swappiness", swappiness);
        }
        if memory.disable_oom_killer() == Some(true) {
            self.add("memory.disableOOMKiller", "memory", "memory.oom_control", 1);
        }
        if let Some(hierarchy) = memory.use_hierarchy() {
            // Since Linux 5.11 there is nothing but hierarchies, and the file may go.
            let way = ("memory.use_hierarchy".to_string(), u8::from(hierarchy).to_string());
            self.push("memory.useHierarchy", "memory", vec![way], hierarchy);
        }
        Ok(())
    }

    fn memory_v2(&mut self, memory: &LinuxMemory, limit: i64, swap: i64) -> Result<()> {
        if limit != 0 {
            self.add("memory.limit", "memory", "memory.max", number_or_max(limit));
        }
        if memory.check_before_update() == Some(true) && limit > 0 {
            self.memory_bytes_at_most = Some(limit);
        }
        if swap != 0 {
            if swap > 0 && limit <= 0 {
                return Err(invalid("memory.swap", "counts memory and swap together, and needs a limit"));
            }
            // Here the file counts swap alone.
            let value = if swap == -1 { "max".to_string() } else { (swap - limit).to_string() };
            let unlimited = value == "max" || value == "0";
            self.push("memory.swap", "memory", vec![("memory.swap.max".into(), value)], unlimited);
        }
        if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
            self.add("memory.reservation", "memory", "memory.low", number_or_max(reservation));
        }
        if memory.disable_oom_killer() == Some(true) {
            self.warn("memory.disableOOMKiller", "cgroup v2 has no such switch");
        }
        if memory.swappiness().is_some_and(|s| s != u64::MAX) {
            self.warn("memory.swappiness", "cgroup v2 has none for a cgroup");
        }
        if memory.use_hierarchy() == Some(false) {
            return Err(unsupported("memory.useHierarchy", "cgroup v2 is always hierarchical"));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu, version: Version, observed: &Observed) -> Result<()> {
        let shares = cpu.shares().filter(|s| *s != 0);
        let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
        match version {
            Version::V1 => {
                if let Some(shares) = shares {
                    self.add("cpu.shares", "cpu", "cpu.shares", shares);
                }
                if let Some(period) = period {
                    self.add("cpu.period", "cpu", "cpu.cfs_period_us", period);
                }
                if let Some(quota) = quota {
                    self.add("cpu.quota", "cpu", "cpu.cfs_quota_us", quota);
                }
            }
            Version::V2 => {
                // An idle cgroup's weight is fixed.
                if let Some(shares) = shares.filter(|_| cpu.idle() != Some(1)) {
                    self.add("cpu.shares", "cpu", "cpu.weight", weight_of_shares(shares));
                }
                let quota = quota.map(number_or_max);
                match (quota, period) {
                    (None, None) => {}
                    // The kernel keeps the other number.
                    (Some(quota), None) => self.add("cpu.quota", "cpu", "cpu.max", quota),
                    (quota, Some(period)) => {
                        let field = if quota.is_some() { "cpu.quota" } else { "cpu.period" };
                        let quota = quota.or_else(|| observed.quota.clone()).unwrap_or("max".into());
                        self.add(field, "cpu", "cpu.max", format!("{quota} {period}"));
                    }
                }
            }
        }
        let burst = if version == Version::V1 { "cpu.cfs_burst_us" } else { "cpu.max.burst" };
        if let Some(value) = cpu.burst() {
            // Zero is what a kernel without the file does.
            self.push("cpu.burst", "cpu", vec![(burst.into(), value.to_string())], value == 0);
        }
        if let Some(idle) = cpu.idle() {
            self.push("cpu.idle", "cpu", vec![("cpu.idle".into(), idle.to_string())], idle == 0);
        }
        let realtime_period = cpu.realtime_period().filter(|p| *p != 0);
        let realtime_runtime = cpu.realtime_runtime().filter(|r| *r != 0);
        if version == Version::V2 && (realtime_period.is_some() || realtime_runtime.is_some()) {
            return Err(unsupported("cpu.realtimeRuntime", "cgroup v2 does not divide realtime"));
        }
        if let Some(period) = realtime_period {
            self.add("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period);
        }
        if let Some(runtime) = realtime_runtime {
            self.add("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime);
        }
        for (field, file, value) in
            [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
        {
            if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
                self.add(field, "cpuset", file, value);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo, version: Version) -> Result<()> {
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            check_weight("blockIO.weight", weight)?;
            self.weight("blockIO.weight", version, "", weight);
        }
        if let Some(weight) = io.leaf_weight().filter(|w| *w != 0) {
            match version {
                Version::V1 => self.add("blockIO.leafWeight", "blkio", "blkio.leaf_weight", weight),
                Version::V2 => {
                    return Err(unsupported("blockIO.leafWeight", "cgroup v2 has no leaf weights"));
                }
            }
        }
        for device in io.weight_device().iter().flatten() {
            let name = number("blockIO.weightDevice", device.major(), device.minor())?;
            if let Some(weight) = device.weight().filter(|w| *w != 0) {
                check_weight("blockIO.weightDevice", weight)?;
                self.weight("blockIO.weightDevice", version, &format!("{name} "), weight);
            }
            if let Some(weight) = device.leaf_weight().filter(|w| *w != 0) {
                let field = "blockIO.weightDevice.leafWeight";
                match version {
                    Version::V1 => {
                        self.add(field, "blkio", "blkio.leaf_weight_device", format!("{name} {weight}"));
                    }
                    Version::V2 => return Err(unsupported(field, "cgroup v2 has no leaf weights")),
                }
            }
        }
        type Throttle<'a> = (&'a str, &'a str, &'a str, &'a Option<Vec<LinuxThrottleDevice>>);
        let throttles: [Throttle; 4] = [
            ("blockIO.throttleReadBpsDevice", "read_bps", "rbps", io.throttle_read_bps_device()),
            ("blockIO.throttleWriteBpsDevice", "write_bps", "wbps", io.throttle_write_bps_device()),
            ("blockIO.throttleReadIOPSDevice", "read_iops", "riops", io.throttle_read_iops_device()),
            ("blockIO.throttleWriteIOPSDevice", "write_iops", "wiops", io.throttle_write_iops_device()),
        ];
        for (field, v1, v2, devices) in throttles {
            for device in devices.iter().flatten() {
                let name = number(field, device.major(), device.minor())?;
                let rate = device.rate();
                match version {
                    Version::V1 => {
                        self.add(
                            field,
                            "blkio",
                            format!("blkio.throttle.{v1}_device"),
                            format!("{name} {rate}"),
                        );
                    }
                    Version::V2 => {
                        let rate = if rate == 0 { "max".to_string() } else { rate.to_string() };
                        self.add(field, "io", "io.max", format!("{name} {v2}={rate}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// A weight goes to the BFQ scheduler's file if there is one; v2's own file has another scale.
    fn weight(&mut self, field: &str, version: Version, device: &str, weight: u16) {
        let suffix = if device.is_empty() { "" } else { "_device" };
        let plain = format!("{device}{weight}");
        match version {
            Version::V1 => {
                let ways =
                    ["blkio.bfq.weight", "blkio.weight"].map(|f| (format!("{f}{suffix}"), plain.clone()));
                self.push(field, "blkio", ways.into(), false);
            }
            Version::V2 => {
                let scaled = 1 + (u32::from(weight) - 10) * 9999 / 990;
                let ways =
                    vec![("io.bfq.weight".into(), plain), ("io.weight".into(), format!("{device}{scaled}"))];
                self.push(field, "io", ways, false);
            }
        }
    }

    fn rest(&mut self, resources: &LinuxResources, version: Version) -> Result<()> {
        for page in resources.hugepage_limits().iter().flatten() {
            let (size, limit) = (page.page_size(), page.limit());
            let digits = size.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
            if digits.is_empty()
                || digits.len() + 2 != size.len()
                || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return Err(invalid("hugepageLimits.pageSize", "is not a number and KB, MB or GB"));
            }
            let (file, value) = match version {
                Version::V1 => ("limit_in_bytes", limit.to_string()),
                Version::V2 => ("max", number_or_max(limit)),
            };
            self.add("hugepageLimits", "hugetlb", format!("hugetlb.{size}.{file}"), &value);
            let reserved = format!("hugetlb.{size}.rsvd.{file}");
            // Since Linux 5.7: pages reserved count too.
            self.push("hugepageLimits", "hugetlb", vec![(reserved, value)], true);
        }
        if let Some(network) = resources.network() {
            let class = network.class_id().filter(|id| *id != 0);
            let priorities = network.priorities().as_deref().unwrap_or_default();
            if version == Version::V2 && (class.is_some() || !priorities.is_empty()) {
                return Err(unsupported("network", "cgroup v2 has no classes and priorities"));
            }
            if let Some(class) = class {
                self.add("network.classID", "net_cls", "net_cls.classid", class);
            }
            for priority in priorities {
                let value =
                    format!("{} {}", word("network.priorities", priority.name())?, priority.priority());
                self.add("network.priorities", "net_prio", "net_prio.ifpriomap", value);
            }
        }
        let mut rdma: Vec<_> = resources.rdma().iter().flatten().collect();
        rdma.sort_by_key(|(device, _)| *device);
        for (device, limit) in rdma {
            let mut value = word("rdma", device)?.to_string();
            for (name, number) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
                if let Some(number) = number {
                    value += &format!(" {name}={number}");
                }
            }
            self.add("rdma", "rdma", "rdma.max", value);
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (file, value) in unified {
            if version == Version::V1 {
                return Err(unsupported("unified", "this host's limits are in cgroup v1"));
            }
            let field = format!("unified.{file}");
            let Some((controller, _)) = file.split_once('.').filter(|_| !file.contains('/')) else {
                return Err(invalid(&field, "is not a file of a cgroup"));
            };
            self.add(&field, controller, file, value);
        }
        Ok(())
    }
}

/// v2's weight for v1's shares: 2 → 1, 1024 → 100, 262144 → 10000, and a curve between that keeps the default where the
/// default is. Source: the formula of runc 1.4 and crun 1.23.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // A hair above a whole number is that number.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

fn check_weight(field: &str, weight: u16) -> Result<()> {
    match weight {
        10..=1000 => Ok(()),
        _ => Err(invalid(field, "is not between 10 and 1000")),
    }
}

fn number_or_max(value: i64) -> String {
    if value < 0 { "max".to_string() } else { value.to_string() }
}

/// `major:minor`.
fn number(field: &str, major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(invalid(field, "device number is out of range")),
    }
}

/// One word of a line that the kernel splits.
fn word<'a>(field: &str, name: &'a str) -> Result<&'a str> {
    match name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err(invalid(field, format!("{name:?} is not a name"))),
        false => Ok(name),
    }
}

fn invalid(field: &str, reason: impl std::fmt::Display) -> Error {
    Error::invalid(format!("linux.resources.{field}"), reason)
}

fn unsupported(field: &str, reason: &str) -> Error {
    Error::unsupported(format!("linux.resources.{field}"), reason)
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
