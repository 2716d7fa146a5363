//! Faults for tests: `PODYARD_FAULT=start:3:kill-daemon` does that before the third step of starting a pod.
//!
//! Inert unless the variable is set when the daemon starts. `verb:number:action[:after]`, with verb `start` or
//! `delete`, the number counted per pod and verb from 1, and action `kill-daemon`, `kill-shim`, `kill-both` or
//! `kill-containers`. It strikes once.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::plan::Verb;

/// The variable of the daemon.
pub const VARIABLE: &str = "PODYARD_FAULT";
/// The variable of the agents of further nodes, which the daemon passes on.
pub const AGENTS_VARIABLE: &str = "PODYARD_AGENT_FAULT";

/// What is struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// This process, by SIGKILL.
    KillDaemon,
    /// The pod's shim.
    KillShim,
    /// Both.
    KillBoth,
    /// The processes of the pod's containers.
    KillContainers,
}

/// On which side of the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// It was not begun.
    Before,
    /// It is done.
    After,
}

/// A fault aimed at one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    verb: Verb,
    number: u32,
    action: Action,
    moment: Moment,
}

impl Fault {
    /// The fault in the environment, if there is one.
    ///
    /// # Errors
    /// `Invalid` for one that cannot be read.
    pub fn from_environment() -> Result<Option<Fault>> {
        Fault::from_variable(VARIABLE)
    }

    /// The fault in the environment that is for further nodes' agents, if there is one.
    ///
    /// # Errors
    /// As [`Fault::from_environment`].
    pub fn of_agents() -> Result<Option<Fault>> {
        Fault::from_variable(AGENTS_VARIABLE)
    }

    fn from_variable(name: &str) -> Result<Option<Fault>> {
        std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse()).transpose()
    }
}

/// Where faults strike. Empty unless a test aims one.
#[derive(Debug, Default)]
pub struct Point(Mutex<Option<Fault>>);

impl Point {
    /// Aims `fault`, in place of the one before.
    pub fn aim(&self, fault: Option<Fault>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// The fault that has not struck yet.
    pub fn aimed(&self) -> Option<Fault> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do at this moment, if it is the one. It strikes once.
    pub fn strike(&self, verb: Verb, number: u32, moment: Moment) -> Option<Action> {
        let mut aimed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = |fault: &mut Fault| (fault.verb, fault.number, fault.moment) == (verb, number, moment);
        aimed.take_if(here).map(|fault| fault.action)
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Fault> {
        let refuse =
            || Error::new(Kind::Invalid, format!("{VARIABLE}={text}: not verb:number:action[:after]"));
        let mut parts = text.split(':');
        let verb = match parts.next() {
            Some("start") => Verb::Start,
            Some("delete") => Verb::Delete,
            _ => return Err(refuse()),
        };
        let number = parts.next().and_then(|number| number.parse().ok()).ok_or_else(refuse)?;
        let action = match parts.next() {
            Some("kill-daemon") => Action::KillDaemon,
            Some("kill-shim") => Action::KillShim,
            Some("kill-both") => Action::KillBoth,
            Some("kill-containers") => Action::KillContainers,
            _ => return Err(refuse()),
        };
        let moment = match (parts.next(), parts.next()) {
            (None, _) | (Some("before"), None) => Moment::Before,
            (Some("after"), None) => Moment::After,
            _ => return Err(refuse()),
        };
        Ok(Fault { verb, number, action, moment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_once_where_it_is_aimed() {
        let fault = Point::default();
        fault.aim("start:3:kill-shim:after".parse().ok());
        assert_eq!(fault.strike(Verb::Start, 3, Moment::Before), None);
        assert_eq!(fault.strike(Verb::Delete, 3, Moment::After), None);
        assert_eq!(fault.strike(Verb::Start, 3, Moment::After), Some(Action::KillShim));
        assert_eq!(fault.strike(Verb::Start, 3, Moment::After), None);
        for bad in [
            "",
            "start",
            "start:x:kill-shim",
            "start:1:explode",
            "stop:1:kill-shim",
            "start:1:kill-shim:then",
        ] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}
