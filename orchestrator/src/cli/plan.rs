//! `plan`: what would be done for manifests, pod by pod. Nothing is changed.

use client::Request;
use serde_json::Value;
use server::yard::Plan;

use super::context::Context;
use super::error::{Error, Outcome};
use super::print::printable;
use super::{manifest, print};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or directory of manifests, or - for standard input; may be given several times
    #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
    files: Vec<String>,
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

/// 1 if an object would be refused.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut objects = Vec::new();
    for manifest in manifest::read_all(&args.files)? {
        let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
        let mut object = manifest.object;
        if manifest.resource.namespaced {
            object["metadata"]["namespace"] = namespace.into();
        }
        objects.push(object);
    }
    let request = Request::new(client::Method::POST, "/podyard/v1/plan").json(&Value::Array(objects));
    let (value, _) = context.client.request_json(request).await?;
    let plan: Plan = serde_json::from_value(value.clone())
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    let refused = plan.objects.iter().filter(|object| object.action == "refuse").count();
    match args.output {
        Some(_) => context.text(&print::json(&value))?,
        None => context.text(&page(&plan, refused))?,
    }
    Ok(u8::from(refused > 0))
}

fn page(plan: &Plan, refused: usize) -> String {
    let mut text = String::new();
    for object in &plan.objects {
        let sign = match object.action.as_str() {
            "create" => '+',
            "configure" => '~',
            "refuse" => '!',
            _ => '=',
        };
        text += &format!("{sign} {} {}\n", object.action, printable(&object.object));
        for note in &object.notes {
            text += &format!("    {}\n", printable(note));
        }
    }
    for pod in &plan.pods {
        let owner =
            if pod.owner.is_empty() { String::new() } else { format!(" (for {})", printable(&pod.owner)) };
        text += &format!("\npod {}{owner}\n", printable(&pod.pod));
        if let Some(error) = &pod.error {
            text += &format!("    cannot be planned: {}\n", printable(error));
        }
        let rows: Vec<Vec<String>> = pod
            .steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                vec![format!("  {:>3}", index + 1), printable(&step.step), printable(&step.effect)]
            })
            .collect();
        text += &print::Columns::default().lay_out(&rows);
    }
    let steps: usize = plan.pods.iter().map(|pod| pod.steps.len()).sum();
    let refused = if refused > 0 { format!(", {refused} refused") } else { String::new() };
    text += &format!(
        "\n{}{refused}, {}, {}. Nothing was changed.\n",
        counted(plan.objects.len(), "object"),
        counted(plan.pods.len(), "pod"),
        counted(steps, "step")
    );
    text
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::yard::{ObjectPlan, PodPlan, Step};

    #[test]
    fn pages() {
        let step =
            Step { step: "netns create".into(), effect: "a new network namespace".into(), ..Step::default() };
        let plan = Plan {
            objects: vec![ObjectPlan {
                object: "replicaset/web".into(),
                action: "create".into(),
                notes: vec!["1 pods".into()],
            }],
            pods: vec![PodPlan {
                pod: "default/web-<1>".into(),
                owner: "replicaset/web".into(),
                steps: vec![step],
                error: None,
            }],
        };
        let expect = "+ create replicaset/web\n    1 pods\n\npod default/web-<1> (for replicaset/web)\n    1   netns create   a new network namespace\n\n1 object, 1 pod, 1 step. Nothing was changed.\n";
        assert_eq!(page(&plan, 0), expect);
    }
}
