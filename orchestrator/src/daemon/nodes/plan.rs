//! What to do about a further node. Pure: no clock, no store, no kernel.
//!
//! ```text
//!  wish (Node object) ─┐
//!                      ├─► steps, in order; each leaves a world from which the next look goes on
//!  seen (kernel) ──────┘
//! ```

/// What is wished of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// It is to be: its object is there, and is not being deleted.
    pub(super) is: bool,
    /// Its power is on.
    pub(super) power: bool,
    /// Its link is severed.
    pub(super) cut: bool,
    /// Our finalizer is on its object.
    pub(super) finalizer: bool,
    /// It has addresses.
    pub(super) cidr: bool,
}

/// What is seen of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its agent lives.
    pub(super) agent: bool,
    /// Its cgroup has processes.
    pub(super) populated: bool,
    /// Its cgroup was killed and has not been made anew: nothing can be born in it.
    pub(super) killed: bool,
    /// It had shims when its agent ended.
    pub(super) shims: bool,
    /// It was found dead, and this is known.
    pub(super) died: bool,
    /// It may be started now: it rests between starts, and after its death.
    pub(super) rested: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Put our finalizer on the object: before the first effect.
    Finalizer,
    /// Give it the next free block of addresses.
    Address,
    /// Directories and token.
    Places,
    /// Namespace, link and routes.
    Network,
    /// Sever its link.
    Cut,
    /// Join its link.
    Heal,
    /// Kill all its processes and see them gone.
    Kill,
    /// Nothing of it runs, and nobody told us to end it: note that it died.
    Died,
    /// Remove what its dead processes left, and its cgroups, which were killed.
    Sweep,
    /// End processes in the cgroup of its agent that are not the agent we know.
    StopAgent,
    /// Start its agent.
    Start,
    /// Kill its processes, release its claims, remove its pods.
    Fence,
    /// Remove link, namespace, directories, and take our finalizer off.
    Remove,
}

/// The steps from what is seen to what is wished.
pub(super) fn plan(wish: Wish, seen: Seen) -> Vec<Step> {
    if !wish.is {
        return vec![Step::Fence, Step::Sweep, Step::Remove];
    }
    let mut steps = Vec::new();
    if !wish.finalizer {
        steps.push(Step::Finalizer);
    }
    if !wish.power {
        if seen.populated || seen.agent {
            steps.push(Step::Kill);
        }
        return steps;
    }
    if !wish.cidr {
        steps.push(Step::Address);
        return steps;
    }
    steps.extend([Step::Places, Step::Network, if wish.cut { Step::Cut } else { Step::Heal }]);
    if seen.agent {
        return steps;
    }
    if seen.populated && seen.killed {
        // What was to die before is still to die.
        steps.push(Step::Kill);
    }
    if !seen.populated && seen.shims && !seen.died && !seen.killed {
        steps.push(Step::Died);
        return steps;
    }
    if seen.rested {
        if seen.killed || !seen.populated {
            steps.push(Step::Sweep);
        } else {
            // Its shims live: only the agent is started anew.
            steps.push(Step::StopAgent);
        }
        steps.push(Step::Start);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::Step::*;
    use super::*;

    const ON: Wish = Wish { is: true, power: true, cut: false, finalizer: true, cidr: true };
    const RESTED: Seen =
        Seen { agent: false, populated: false, killed: false, shims: false, died: false, rested: true };

    #[test]
    fn from_any_state_to_any_wish() {
        for (name, wish, seen, expect) in [
            ("new", Wish { finalizer: false, cidr: false, ..ON }, RESTED, vec![Finalizer, Address]),
            ("made", ON, RESTED, vec![Places, Network, Heal, Sweep, Start]),
            ("at work", ON, Seen { agent: true, populated: true, ..RESTED }, vec![Places, Network, Heal]),
            ("cut", Wish { cut: true, ..ON }, Seen { agent: true, ..RESTED }, vec![Places, Network, Cut]),
            (
                "agent died alone",
                ON,
                Seen { populated: true, shims: true, ..RESTED },
                vec![Places, Network, Heal, StopAgent, Start],
            ),
            ("agent dies again and again", ON, Seen { rested: false, ..RESTED }, vec![Places, Network, Heal]),
            ("all died", ON, Seen { shims: true, ..RESTED }, vec![Places, Network, Heal, Died]),
            (
                "all died, rests",
                ON,
                Seen { shims: true, died: true, rested: false, ..RESTED },
                vec![Places, Network, Heal],
            ),
            (
                "all died, rested",
                ON,
                Seen { shims: true, died: true, ..RESTED },
                vec![Places, Network, Heal, Sweep, Start],
            ),
            (
                "power off",
                Wish { power: false, ..ON },
                Seen { agent: true, populated: true, ..RESTED },
                vec![Kill],
            ),
            ("off", Wish { power: false, ..ON }, Seen { killed: true, ..RESTED }, vec![]),
            (
                "power on again",
                ON,
                Seen { killed: true, shims: true, ..RESTED },
                vec![Places, Network, Heal, Sweep, Start],
            ),
            (
                "power on while something does not die",
                ON,
                Seen { killed: true, populated: true, ..RESTED },
                vec![Places, Network, Heal, Kill, Sweep, Start],
            ),
            ("removed", Wish { is: false, ..ON }, Seen { agent: true, ..RESTED }, vec![Fence, Sweep, Remove]),
            ("removed while off", Wish { is: false, power: false, ..ON }, RESTED, vec![Fence, Sweep, Remove]),
        ] {
            assert_eq!(plan(wish, seen), expect, "{name}");
        }
    }
}
