//! Device rules on v1: what to write to `devices.allow` and `devices.deny`.
//!
//! The kernel keeps a default and exceptions from it, and takes `a` for "everything" whatever else the line says. The
//! spec's list, in which a later rule overrides an earlier one, is therefore played through here, and the outcome
//! written. An exception inside an exception cannot be said, and is refused. The devices that every container has come
//! last in the list, as on v2.
//!
//! Source: cgroup-v1/devices.rst; security/device_cgroup.c.

use oci_spec::runtime::LinuxDeviceCgroup;

use super::devices::{MKNOD, READ, Rule, WRITE, rules};
use crate::error::{Error, Result};

const ALL: u32 = MKNOD | READ | WRITE;

/// Block or character (1, 2), major, minor; `None` is any.
type Place = (u32, Option<u32>, Option<u32>);

struct State {
    allows: bool,
    /// Whether the default is the list's, not the parent cgroup's, which a new one has.
    decided: bool,
    /// In the order of the list, which is the order in which the kernel shows them.
    exceptions: Vec<(Place, u32)>,
}

/// The files and lines, in order; none for no rules.
///
/// # Errors
/// `Invalid` as on v2; `Unsupported` for a rule that v1 cannot express.
pub(super) fn writes(spec: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>> {
    if spec.is_empty() {
        return Ok(Vec::new());
    }
    let mut state = State { allows: true, decided: false, exceptions: Vec::new() };
    for rule in rules(spec)? {
        state.apply(&rule)?;
    }
    let (whole, other) =
        if state.allows { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    let mut writes = Vec::new();
    writes.extend(state.decided.then(|| (whole, "a".to_string())));
    writes.extend(state.exceptions.iter().map(|(place, access)| (other, line(*place, *access))));
    Ok(writes)
}

impl State {
    fn apply(&mut self, rule: &Rule) -> Result<()> {
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == ALL {
            *self = Self { allows: rule.allow, decided: true, exceptions: Vec::new() };
            return Ok(());
        }
        for kind in rule.kind.map_or(vec![1, 2], |kind| vec![kind]) {
            self.apply_to((kind, rule.major, rule.minor), rule.access, rule.allow)?;
        }
        Ok(())
    }

    fn apply_to(&mut self, place: Place, access: u32, allow: bool) -> Result<()> {
        if allow != self.allows {
            match self.exceptions.iter_mut().find(|(other, _)| *other == place) {
                Some((_, excepted)) => *excepted |= access,
                None => self.exceptions.push((place, access)),
            }
            return Ok(());
        }
        for i in 0..self.exceptions.len() {
            let (other, excepted) = self.exceptions[i];
            if covers(place, other) {
                self.exceptions[i].1 = excepted & !access;
            } else if excepted & access != 0 && overlap(place, other) {
                if self.turned_around() {
                    return self.apply_to(place, access, allow);
                }
                let text = format!(
                    "cgroup v1 cannot except {:?} from the earlier {:?}",
                    line(place, access),
                    line(other, excepted)
                );
                return Err(Error::unsupported("linux.resources.devices", text));
            }
        }
        self.exceptions.retain(|(_, access)| *access != 0);
        Ok(())
    }

    /// All character or block devices excepted from "everything" is "nothing" but the rest.
    fn turned_around(&mut self) -> bool {
        let whole = |((_, major, minor), _): &(Place, u32)| major.is_none() && minor.is_none();
        if !self.allows || !self.exceptions.iter().all(whole) {
            return false;
        }
        let rest = [1, 2].map(|kind| {
            let place = (kind, None, None);
            let excepted = self.exceptions.iter().find(|(other, _)| *other == place);
            (place, ALL & !excepted.map_or(0, |(_, access)| *access))
        });
        *self = Self { allows: false, decided: true, exceptions: rest.to_vec() };
        self.exceptions.retain(|(_, access)| *access != 0);
        true
    }
}

fn covers(wide: Place, narrow: Place) -> bool {
    let part = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    wide.0 == narrow.0 && part(wide.1, narrow.1) && part(wide.2, narrow.2)
}

fn overlap(a: Place, b: Place) -> bool {
    let part = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    a.0 == b.0 && part(a.1, b.1) && part(a.2, b.2)
}

/// `c 1:3 rwm`, `b *:* m`.
fn line((kind, major, minor): Place, access: u32) -> String {
    let number = |n: Option<u32>| n.map_or("*".to_string(), |n| n.to_string());
    let mut line = format!("{} {}:{} ", if kind == 1 { 'b' } else { 'c' }, number(major), number(minor));
    line.extend(
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| access & bit != 0).map(|(_, c)| c),
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &str, expect: Result<&[&str], &str>) {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).unwrap();
        let found = writes(&rules).map(|writes| {
            let lines = writes.iter().map(|(file, line)| format!("{} {line}", &file[8..]));
            lines.collect::<Vec<_>>()
        });
        match (found, expect) {
            (Ok(found), Ok(expect)) => {
                let mut found = found;
                // The standard devices are in every list.
                found.retain(|l| !STANDARD.contains(&l.as_str()));
                assert_eq!(found, expect, "{rules:?}");
            }
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{error}"),
            (found, expect) => panic!("{rules:?}: {found:?} instead of {expect:?}"),
        }
    }

    const STANDARD: [&str; 8] = [
        "allow c 1:3 rwm",
        "allow c 1:5 rwm",
        "allow c 1:7 rwm",
        "allow c 1:8 rwm",
        "allow c 1:9 rwm",
        "allow c 5:0 rwm",
        "allow c 5:2 rwm",
        "allow c 136:* rwm",
    ];

    #[test]
    fn a_list_becomes_a_default_and_exceptions() {
        check("[]", Ok(&[]));
        let nodes = ["deny a", "allow b *:* m", "allow c *:* m"];
        check(r#"[{"allow":false,"access":"rwm"}]"#, Ok(&nodes));
        check(
            r#"[{"allow":true,"type":"b","major":9,"access":"rwm"}, {"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
            Ok(&["deny a", "allow c 10:229 rw", "allow b *:* m", "allow c *:* m"]),
        );
        // A denial of what was allowed before takes it back.
        check(
            r#"[{"allow":false}, {"allow":true,"type":"c","major":10,"minor":229}, {"allow":false,"type":"c","major":10,"access":"w"}]"#,
            Ok(&["deny a", "allow c 10:229 rm", "allow b *:* m", "allow c *:* m"]),
        );
        // `a` with numbers must not reach the kernel, which would take it for everything.
        check(
            r#"[{"allow":false}, {"allow":true,"type":"a","major":10,"access":"r"}]"#,
            Ok(&["deny a", "allow b 10:* r", "allow c 10:* r", "allow b *:* m", "allow c *:* m"]),
        );
        check(r#"[{"allow":false,"type":"c","major":10,"access":"w"}]"#, Ok(&["deny c 10:* w"]));
        check(r#"[{"allow":false,"type":"c"}]"#, Ok(&["deny a", "allow b *:* rwm", "allow c *:* m"]));
    }

    #[test]
    fn what_v1_cannot_say_is_refused() {
        check(
            r#"[{"allow":false}, {"allow":true,"type":"c","major":10}, {"allow":false,"type":"c","major":10,"minor":5}]"#,
            Err("cannot except"),
        );
        check(r#"[{"allow":true,"access":"x"}]"#, Err("linux.resources.devices"));
    }
}
