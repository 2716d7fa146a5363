//! The five capability sets. Source: capabilities(7).

use std::collections::HashSet;

use caps::{CapSet, Capability, CapsHashSet};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use crate::error::{Error, Kind, Result};

/// The sets a process has when its program starts. Absent ones are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

impl CapabilitySets {
    /// The sets of the spec; none at all where the spec has none.
    pub(crate) fn from_spec(spec: Option<&LinuxCapabilities>) -> Result<Self> {
        let Some(spec) = spec else {
            return Ok(Self::default());
        };
        Ok(Self {
            bounding: convert(spec.bounding().as_ref())?,
            effective: convert(spec.effective().as_ref())?,
            inheritable: convert(spec.inheritable().as_ref())?,
            permitted: convert(spec.permitted().as_ref())?,
            ambient: convert(spec.ambient().as_ref())?,
        })
    }

    /// Drops from the bounding set all that the spec does not keep, and with it what execve could
    /// give back. Needs `CAP_SETPCAP`, so it comes before [`CapabilitySets::apply`].
    ///
    /// Capabilities that this process does not have cannot be given: they are taken out of every
    /// set, with a warning, as other runtimes do.
    pub(crate) fn limit(&mut self, warnings: &mut Vec<String>) -> Result<()> {
        let have = read(CapSet::Permitted)?;
        let missing: HashSet<_> =
            [&self.bounding, &self.effective, &self.inheritable, &self.permitted, &self.ambient]
                .into_iter()
                .flatten()
                .copied()
                .collect();
        // The bounding set is asked about one by one, so not about all.
        let missing: HashSet<_> = missing.into_iter().filter(|c| !have.contains(c) || !bounded(*c)).collect();
        if !missing.is_empty() {
            let mut names: Vec<_> = missing.iter().map(Capability::to_string).collect();
            names.sort();
            warnings.push(format!("capabilities not held here: {}", names.join(", ")));
            for set in [
                &mut self.bounding,
                &mut self.effective,
                &mut self.inheritable,
                &mut self.permitted,
                &mut self.ambient,
            ] {
                set.retain(|c| !missing.contains(c));
            }
        }
        // What the kernel would refuse to raise, the program does without.
        let mut idle: Vec<_> = self
            .ambient
            .iter()
            .filter(|cap| !self.permitted.contains(cap) || !self.inheritable.contains(cap))
            .copied()
            .collect();
        idle.sort_by_key(Capability::index);
        for cap in idle {
            self.ambient.remove(&cap);
            let reason = "it is not both permitted and inheritable";
            warnings.push(format!("can't raise ambient capability {cap}: {reason}"));
        }
        for cap in caps::all().difference(&self.bounding) {
            match caps::drop(None, CapSet::Bounding, *cap) {
                // It may not be there, or not be known here.
                Err(e) if bounded(*cap) => return Err(fail("drop bounding", &e)),
                Ok(()) | Err(_) => {}
            }
        }
        // Capabilities newer than the caps crate are in nobody's spec.
        let known = caps::all().iter().map(Capability::index).max();
        let mut next = known.map_or(0, |i| u32::from(i) + 1);
        while crate::sys::drop_bounding(next)? {
            next += 1;
        }
        Ok(())
    }

    /// Takes the other four sets. Comes after the change of user, which clears some.
    pub(crate) fn apply(&self) -> Result<()> {
        let set = |set: CapSet, value: &CapsHashSet| {
            caps::set(None, set, value).map_err(|e| fail(&format!("set {set:?}"), &e))
        };
        // Inheritable first: it may take from permitted, which shrinks next.
        set(CapSet::Inheritable, &self.inheritable)?;
        set(CapSet::Effective, &self.effective)?;
        set(CapSet::Permitted, &self.permitted)?;
        // One call where `caps::set` lowers each by itself.
        caps::clear(None, CapSet::Ambient).map_err(|e| fail("clear Ambient", &e))?;
        for cap in &self.ambient {
            caps::raise(None, CapSet::Ambient, *cap).map_err(|e| fail("raise Ambient", &e))?;
        }
        Ok(())
    }
}

impl CapabilitySets {
    /// Takes the effective set only: what follows has the program's rights, and [`CapabilitySets::take_all_effective`]
    /// can still follow.
    pub(crate) fn take_effective(&self) -> Result<()> {
        caps::set(None, CapSet::Effective, &self.effective).map_err(|e| fail("set Effective", &e))
    }

    /// Makes every permitted capability effective again.
    pub(crate) fn take_all_effective() -> Result<()> {
        let all = read(CapSet::Permitted)?;
        caps::set(None, CapSet::Effective, &all).map_err(|e| fail("set Effective", &e))
    }
}

/// Whether execve may give it at all; also false of one that this kernel does not know.
fn bounded(cap: Capability) -> bool {
    caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false)
}

fn read(set: CapSet) -> Result<CapsHashSet> {
    caps::read(None, set).map_err(|e| fail(&format!("read {set:?}"), &e))
}

fn fail(call: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Denied, format!("capabilities: {call}: {error}"))
}

fn convert(set: Option<&Capabilities>) -> Result<CapsHashSet> {
    set.into_iter()
        .flatten()
        .map(|cap| {
            let name = format!("CAP_{cap}");
            name.parse::<Capability>()
                .map_err(|_| Error::invalid("process.capabilities", format!("unknown {name}")))
        })
        .collect()
}
