//! Services.

use super::{Lines, Related, annotations, head, labels, shown, text, text_or};
use crate::object::Object;
use crate::table::plain_selector;

pub(super) fn service(service: &Object, related: &Related<'_>, lines: &mut Lines) {
    head(service, lines);
    labels(service, 0, lines);
    annotations(service, 0, lines);
    lines.pair(0, "Selector", shown(&plain_selector(service.get("spec.selector"))));
    lines.pair(0, "Type", text(service, "spec.type"));
    let list = |path: &str| {
        let items: Vec<String> = service.get_array(path).iter().map(shown).collect();
        if items.is_empty() { "<none>".to_string() } else { items.join(",") }
    };
    if service.get("spec.ipFamilyPolicy").is_some() {
        lines.pair(0, "IP Family Policy", text(service, "spec.ipFamilyPolicy"));
    }
    lines.pair(0, "IP Families", list("spec.ipFamilies"));
    lines.pair(0, "IP", text(service, "spec.clusterIP"));
    lines.pair(0, "IPs", list("spec.clusterIPs"));
    for port in service.get_array("spec.ports") {
        let name = match shown(&port["name"]) {
            name if name.is_empty() => "<unset>".to_string(),
            name => name,
        };
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        lines.line(0, format!("Port:\t{name}\t{}/{protocol}", shown(&port["port"])));
        lines.pair(0, "TargetPort", format!("{}/{protocol}", shown(&port["targetPort"])));
        lines.pair(0, "Endpoints", endpoints(related, &shown(&port["name"])));
    }
    lines.pair(0, "Session Affinity", text_or(service, "spec.sessionAffinity", "None"));
    if service.get("spec.internalTrafficPolicy").is_some() {
        lines.pair(0, "Internal Traffic Policy", text(service, "spec.internalTrafficPolicy"));
    }
}

/// Ready addresses behind a port: the first three, and how many more.
fn endpoints(related: &Related<'_>, port_name: &str) -> String {
    let mut all = Vec::new();
    for slice in related.endpoint_slices {
        let ports = slice.get_array("ports").iter().filter(|port| shown(&port["name"]) == port_name);
        for port in ports {
            let ready = slice.get_array("endpoints").iter().filter(|e| e["conditions"]["ready"] != false);
            let addresses = ready.filter_map(|endpoint| endpoint["addresses"].as_array()).flatten();
            all.extend(addresses.map(|address| format!("{}:{}", shown(address), shown(&port["port"]))));
        }
    }
    match all.len() {
        0 => String::new(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}
