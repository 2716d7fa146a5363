//! Which of the nodes that do is best.
//!
//! What people prefer comes first, weighted as kube-scheduler weighs it: each wish is scaled to 0..=100 over the nodes
//! that do, and counts 3 (PreferNoSchedule taints) or 2 (node affinity, spread, pod affinity). Then a controller's
//! pods are spread over the nodes, then the node with most room wins, then the one with fewest pods, then the first
//! by name.

use api::Object;
use api::quantity::{parse_bytes, parse_millicpu};

use super::affinity;
use super::filter::{allocatable, pods_max};
use super::neighbours::Preferences;
use super::scene::{Scene, Site};
use super::spread::Spread;
use crate::ledger::Amount;
use crate::pod;
use crate::toleration::tolerates;

/// The best of `fitting`, by index.
pub fn best(scene: &Scene<'_>, fitting: &[&Site<'_>], amount: Amount) -> Option<usize> {
    let wishes = wishes(scene, fitting);
    let siblings = siblings(scene, fitting);
    let rank = |index: &usize| {
        let site = fitting[*index];
        let fill = fill(site, amount);
        (-wishes[*index], siblings[*index], fill, site.used.pods, site.node.name())
    };
    (0..fitting.len()).min_by_key(rank)
}

/// What is wished of each node, all together.
fn wishes(scene: &Scene<'_>, fitting: &[&Site<'_>]) -> Vec<i64> {
    let pod = scene.pod;
    let (spread, preferences) = (Spread::preferred(scene), Preferences::new(scene));
    let crowds: Vec<Option<i64>> = fitting.iter().map(|site| spread.crowd(site)).collect();
    let worst = crowds.iter().flatten().max().copied().unwrap_or(0);
    let each = |of: &dyn Fn(&Site<'_>) -> i64| fitting.iter().map(|site| of(site)).collect::<Vec<i64>>();
    let parts = [
        (3, each(&|site| -repulsion(pod, site))),
        (2, each(&|site| affinity::preference(pod, site.node))),
        // Without the label it is as bad as the worst, and worse.
        (2, crowds.into_iter().map(|crowd| -crowd.unwrap_or(worst + 1)).collect()),
        (2, each(&|site| preferences.of(site))),
    ];
    let mut sums = vec![0; fitting.len()];
    for (weight, values) in parts {
        for (sum, value) in sums.iter_mut().zip(scaled(&values)) {
            *sum += weight * value;
        }
    }
    sums
}

/// From 0 for the least to 100 for the most; all 0 if none differs.
fn scaled(values: &[i64]) -> Vec<i64> {
    let (Some(low), Some(high)) = (values.iter().min(), values.iter().max()) else { return Vec::new() };
    values.iter().map(|value| (value - low) * 100 / (high - low).max(1)).collect()
}

/// Taints that would rather not have the pod.
fn repulsion(pod: &Object, site: &Site<'_>) -> i64 {
    let soft = site.taints.iter().filter(|taint| taint["effect"] == "PreferNoSchedule");
    let tolerations = pod.get_array("spec.tolerations");
    let count = soft.filter(|taint| !tolerations.iter().any(|it| tolerates(it, taint))).count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Live pods of the same controller on each node.
fn siblings(scene: &Scene<'_>, fitting: &[&Site<'_>]) -> Vec<usize> {
    let mut counts = vec![0; fitting.len()];
    let Some(owner) = pod::manager(scene.pod) else { return counts };
    for (sibling, node) in scene.of_owner(owner) {
        if !sibling.is_deleting()
            && let Some(index) = fitting.iter().position(|site| site.node.name() == node)
        {
            counts[index] += 1;
        }
    }
    counts
}

/// How full the node would be, in thousandths: the mean over CPU, memory and pods.
fn fill(site: &Site<'_>, amount: Amount) -> u64 {
    let share = |used: u64, wanted: u64, most: u64| {
        u64::try_from(u128::from(used.saturating_add(wanted)) * 1000 / u128::from(most.max(1)))
            .unwrap_or(1000)
    };
    let used = site.used;
    let cpu = share(used.millicpu, amount.millicpu, allocatable(site.node, "cpu", parse_millicpu));
    let memory = share(used.memory_bytes, amount.memory_bytes, allocatable(site.node, "memory", parse_bytes));
    let pods = share(used.pods, amount.pods, pods_max(site.node));
    (cpu + memory + pods) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_scaled_to_a_hundred() {
        assert_eq!(scaled(&[]), [0; 0]);
        assert_eq!(scaled(&[7, 7]), [0, 0]);
        assert_eq!(scaled(&[-3, 0, 3]), [0, 50, 100]);
    }
}
