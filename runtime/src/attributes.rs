//! What a process has that is neither identity nor right: how it is scheduled, where it runs and allocates, which
//! machine it believes to be on.
//!
//! Source: sched(7), ioprio_set(2), personality(2), set_mempolicy(2), sched_setaffinity(2); runtime-spec, config.md,
//! "Linux Process", and config-linux.md, "Personality" and "Memory policy".
#![forbid(unsafe_code)]

use nix::sched::CpuSet;
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};

use crate::error::{Call, Error, Result, Step};
use crate::sys::{self, SchedAttr};

/// All of them; what is `None` stays as the caller has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    scheduler: Option<SchedAttr>,
    /// As ioprio_set(2) takes it: class and level.
    io_priority: Option<u32>,
    /// `PER_*`.
    personality: Option<u64>,
    memory_policy: Option<MemoryPolicy>,
    /// CPUs to be made on, for an exec.
    pub(crate) initial_cpus: Option<Vec<u32>>,
    /// CPUs to run on, for an exec.
    final_cpus: Option<Vec<u32>>,
}

/// NUMA nodes to allocate from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MemoryPolicy {
    /// `MPOL_*`, flags included.
    mode: u32,
    nodes: Vec<u32>,
}

/// CPUs that an affinity can name. Source: sched_setaffinity(2), `CPU_SETSIZE`.
const CPUS_MAX: u32 = 1024;

/// Nodes that a memory policy can name. The most a kernel is built for (`NODES_SHIFT`).
const NODES_MAX: u32 = 1024;

impl Attributes {
    /// Checks the spec's process.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub(crate) fn from_spec(process: &Process) -> Result<Self> {
        let affinity = process.exec_cpu_affinity().as_ref();
        let cpus = |name: &str, list: Option<&String>| -> Result<Option<Vec<u32>>> {
            let field = format!("process.execCPUAffinity.{name}");
            let text = list.filter(|text| !text.is_empty());
            text.map(|text| numbers(text, CPUS_MAX).map_err(|reason| Error::invalid(field, reason)))
                .transpose()
        };
        Ok(Self {
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            initial_cpus: cpus("initial", affinity.and_then(|a| a.initial().as_ref()))?,
            final_cpus: cpus("final", affinity.and_then(|a| a.cpu_affinity_final().as_ref()))?,
            ..Self::default()
        })
    }

    /// Adds what the container's spec has for all of its processes.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming the field.
    pub(crate) fn within(&mut self, linux: &Linux) -> Result<()> {
        if let Some(personality) = linux.personality() {
            if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
                // The specification names none.
                return Err(Error::unsupported("linux.personality.flags", "none are known"));
            }
            // Source: include/uapi/linux/personality.h.
            self.personality = Some(match personality.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 8,
            });
        }
        if let Some(policy) = linux.memory_policy() {
            let nodes = policy.nodes().as_deref().filter(|nodes| !nodes.is_empty());
            let nodes = nodes.map(|nodes| numbers(nodes, NODES_MAX)).transpose();
            let nodes = nodes.map_err(|reason| Error::invalid("linux.memoryPolicy.nodes", reason))?;
            let flags = policy.flags().iter().flatten().map(|flag| memory_flag(*flag));
            self.memory_policy = Some(MemoryPolicy {
                mode: flags.fold(memory_mode(policy.mode()), |mode, flag| mode | flag),
                nodes: nodes.unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// Moves an exec, which is in its cgroup by now, to its CPUs. If it is only said where it begins, that is where it stays.
    pub(crate) fn settle_on_cpus(&self) -> Result<()> {
        match (&self.initial_cpus, &self.final_cpus) {
            (_, Some(cpus)) => run_on(cpus).step("process.execCPUAffinity.final"),
            (Some(_), None) => Ok(()),
            (None, None) => forget_the_callers(),
        }
    }

    /// Gives this process what only itself can: personality and memory policy.
    pub(crate) fn apply(&self) -> Result<()> {
        if let Some(personality) = self.personality {
            let persona = nix::sys::personality::Persona::from_bits_retain(personality as i32);
            nix::sys::personality::set(persona)
                .call(|| format!("personality({personality:#x})"))
                .step("linux.personality")?;
        }
        if let Some(policy) = &self.memory_policy {
            sys::set_mempolicy(policy.mode, &policy.nodes).step("linux.memoryPolicy")?;
        }
        Ok(())
    }

    /// Gives a process its place before others; 0 is this one.
    pub(crate) fn prioritize(&self, pid: i32) -> Result<()> {
        if let Some(priority) = self.io_priority {
            sys::ioprio_set(pid, priority).step("process.ioPriority")?;
        }
        match &self.scheduler {
            Some(scheduler) => sys::sched_setattr(pid, scheduler).step("process.scheduler"),
            None => Ok(()),
        }
    }
}

/// Where the caller is pinned to is its own affair: a container runs where its cpuset lets it. To be called once in it.
pub(crate) fn forget_the_callers() -> Result<()> {
    sys::run_anywhere()
}

/// Lets this process run on these CPUs only.
fn run_on(cpus: &[u32]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu as usize).call(|| format!("CPU_SET({cpu})"))?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .call(|| format!("sched_setaffinity(0, {cpus:?})"))
}

/// Runs `work` with this process on other CPUs, so that what it makes begins there.
pub(crate) fn on_cpus<T>(cpus: Option<&[u32]>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(cpus) = cpus else {
        return work();
    };
    let own = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))
        .call(|| "sched_getaffinity(0)".into())?;
    run_on(cpus).step("process.execCPUAffinity.initial")?;
    let done = work();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &own)
        .call(|| "sched_setaffinity(0, own)".into())?;
    done
}

fn scheduler(spec: &oci_spec::runtime::Scheduler) -> Result<SchedAttr> {
    use LinuxSchedulerFlag as F;
    use LinuxSchedulerPolicy as P;
    // Source: include/uapi/linux/sched.h.
    let policy = match spec.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        P::SchedIso => {
            return Err(Error::unsupported("process.scheduler.policy", "SCHED_ISO is in no kernel"));
        }
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
    };
    let flags = spec.flags().iter().flatten().map(|flag| match flag {
        F::SchedResetOnFork => 0x01,
        F::SchedFlagReclaim => 0x02,
        F::SchedFlagDLOverrun => 0x04,
        F::SchedFlagKeepPolicy => 0x08,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    });
    let nice = spec.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(Error::invalid("process.scheduler.nice", format!("{nice} is not from -20 to 19")));
    }
    let priority = spec.priority().unwrap_or(0);
    let real_time = matches!(spec.policy(), P::SchedFifo | P::SchedRr);
    if priority != 0 && !real_time {
        let reason = "is for SCHED_FIFO and SCHED_RR";
        return Err(Error::invalid("process.scheduler.priority", reason));
    }
    let deadlines = [spec.runtime(), spec.deadline(), spec.period()];
    if *spec.policy() != P::SchedDeadline && deadlines.iter().any(|n| n.unwrap_or(0) != 0) {
        let reason = "runtime, deadline and period are for SCHED_DEADLINE";
        return Err(Error::invalid("process.scheduler", reason));
    }
    Ok(SchedAttr {
        policy,
        flags: flags.fold(0, |all, flag| all | flag),
        nice,
        priority: u32::try_from(priority)
            .map_err(|_| Error::invalid("process.scheduler.priority", "is below 0"))?,
        runtime: spec.runtime().unwrap_or(0),
        deadline: spec.deadline().unwrap_or(0),
        period: spec.period().unwrap_or(0),
    })
}

/// Source: include/uapi/linux/ioprio.h.
fn io_priority(spec: &oci_spec::runtime::LinuxIOPriority) -> Result<u32> {
    let class = match spec.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(spec.priority()).ok().filter(|level| *level < 8);
    let level = level.ok_or_else(|| Error::invalid("process.ioPriority.priority", "is not from 0 to 7"))?;
    Ok(class << 13 | level)
}

/// Source: include/uapi/linux/mempolicy.h.
fn memory_mode(mode: MemoryPolicyModeType) -> u32 {
    use MemoryPolicyModeType as M;
    match mode {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    }
}

/// Source: include/uapi/linux/mempolicy.h.
fn memory_flag(flag: MemoryPolicyFlagType) -> u32 {
    match flag {
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
    }
}

/// `0-2,7` → 0, 1, 2, 7; each below `end`. Blanks and empty elements are let through, as others do.
fn numbers(text: &str, end: u32) -> Result<Vec<u32>, String> {
    let bad = || format!("{text:?} is not a list of numbers below {end}");
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < end).ok_or_else(bad);
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        all.extend(first..=last);
    }
    if all.is_empty() { Err(bad()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(fields: Value) -> Result<Attributes> {
        let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"]});
        process.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Attributes::from_spec(&serde_json::from_value(process).unwrap())
    }

    fn parse_linux(linux: Value) -> Result<Attributes> {
        let mut attributes = Attributes::default();
        attributes.within(&serde_json::from_value(linux).unwrap())?;
        Ok(attributes)
    }

    #[test]
    fn schedulers() {
        let zero = SchedAttr::default();
        let cases = [
            (json!({"policy": "SCHED_OTHER", "nice": -5}), SchedAttr { nice: -5, ..zero }),
            (json!({"policy": "SCHED_FIFO", "priority": 9}), SchedAttr { policy: 1, priority: 9, ..zero }),
            (json!({"policy": "SCHED_RR", "priority": 1}), SchedAttr { policy: 2, priority: 1, ..zero }),
            (json!({"policy": "SCHED_BATCH", "nice": 19}), SchedAttr { policy: 3, nice: 19, ..zero }),
            (
                json!({"policy": "SCHED_IDLE", "flags": ["SCHED_RESET_ON_FORK"]}),
                SchedAttr { policy: 5, flags: 1, ..zero },
            ),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
                       "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_KEEP_PARAMS"]}),
                SchedAttr { policy: 6, flags: 0x12, runtime: 1, deadline: 2, period: 3, ..zero },
            ),
        ];
        for (spec, expected) in cases {
            let found = parse(json!({"scheduler": spec})).unwrap();
            assert_eq!(found.scheduler, Some(expected));
        }
        for (spec, named) in [
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
            (json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority"),
            (json!({"policy": "SCHED_FIFO", "priority": -1}), "process.scheduler.priority"),
            (json!({"policy": "SCHED_FIFO", "runtime": 1}), "process.scheduler: runtime"),
            (json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
        ] {
            let error = parse(json!({"scheduler": spec})).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn priorities_personalities_and_policies() {
        let class = |class: &str, level: i64| {
            parse(json!({"ioPriority": {"class": class, "priority": level}})).map(|a| a.io_priority)
        };
        assert_eq!(class("IOPRIO_CLASS_RT", 0).unwrap(), Some(0x2000));
        assert_eq!(class("IOPRIO_CLASS_BE", 7).unwrap(), Some(0x4007));
        assert_eq!(class("IOPRIO_CLASS_IDLE", 0).unwrap(), Some(0x6000));
        for level in [-1, 8] {
            let error = class("IOPRIO_CLASS_BE", level).unwrap_err().to_string();
            assert!(error.contains("process.ioPriority.priority"), "{error}");
        }
        for (domain, number) in [("LINUX", 0), ("LINUX32", 8)] {
            let found = parse_linux(json!({"personality": {"domain": domain}})).unwrap();
            assert_eq!(found.personality, Some(number));
        }
        let flags = parse_linux(json!({"personality": {"domain": "LINUX", "flags": ["X"]}}));
        assert!(flags.unwrap_err().to_string().contains("linux.personality.flags"));
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0,2-3", "flags": ["MPOL_F_STATIC_NODES"]});
        let found = parse_linux(json!({"memoryPolicy": policy})).unwrap();
        assert_eq!(found.memory_policy, Some(MemoryPolicy { mode: 0x8002, nodes: vec![0, 2, 3] }));
        let wrong = parse_linux(json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "x"}}));
        assert!(wrong.unwrap_err().to_string().contains("linux.memoryPolicy.nodes"));
    }

    #[test]
    fn lists_of_numbers() {
        for (text, expected) in [
            ("0", Some(vec![0])),
            ("0-2,7", Some(vec![0, 1, 2, 7])),
            (" 3 , ,5-5", Some(vec![3, 5])),
            ("99", Some(vec![99])),
            ("100", None),
            ("2-1", None),
            ("-1", None),
            ("1-", None),
            ("a", None),
            (",", None),
        ] {
            assert_eq!(numbers(text, 100).ok(), expected, "{text}");
        }
        let affinity = parse(json!({"execCPUAffinity": {"initial": "0", "final": "0-1"}})).unwrap();
        assert_eq!((affinity.initial_cpus, affinity.final_cpus), (Some(vec![0]), Some(vec![0, 1])));
    }
}
