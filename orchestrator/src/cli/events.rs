//! `events`: what happened, oldest first; and what happens.

use api::{Key, Object, Timestamp, time};
use client::{EventKind, ListOptions, WatchOptions};

use super::context::Context;
use super::error::Outcome;
use super::get::Selection;
use super::print::{self, Columns, Format, printable};
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Go on showing what happens
    #[arg(long, short)]
    watch: bool,
    /// Only events about one object, as pod/web-0
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Only events of these types, as Warning or Normal,Warning
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    types: Vec<String>,
    /// Another form: json, yaml, name, jsonpath={…}
    #[arg(long, short, value_parser = print::format, value_name = "FORMAT")]
    output: Option<Format>,
    /// Leave out the headers
    #[arg(long)]
    no_headers: bool,
}

/// When an event was last seen; its creation if it does not say.
pub fn last_seen(event: &Object) -> Option<Timestamp> {
    let fields = ["series.lastObservedTime", "lastTimestamp", "eventTime", "firstTimestamp"];
    fields.iter().find_map(|field| event.get(field).and_then(time::parse)).or(event.creation_timestamp())
}

/// How long ago an event was last seen, and how often it was.
pub fn age(context: &Context, event: &Object) -> String {
    let last = time::age(last_seen(event), context.now());
    let count = event.get_i64("series.count").or(event.get_i64("count")).unwrap_or(1);
    match event.get("firstTimestamp").and_then(time::parse) {
        Some(first) if count > 1 => {
            format!("{last} (x{count} over {})", time::age(Some(first), context.now()))
        }
        _ => last,
    }
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let events = Key::core("events", "", "").resource;
    let namespace = args.selection.namespace(context);
    let mut fields: Vec<String> = args.selection.field_selector.clone().into_iter().collect();
    let about = args.about.as_ref().map(|word| target::parse(std::slice::from_ref(word))).transpose()?;
    if let Some([Target::Object(resource, name)]) = about.as_deref() {
        fields.push(format!("involvedObject.kind={}", resource.stored().kind));
        fields.push(format!("involvedObject.name={name}"));
    }
    let fields = Some(fields.join(",")).filter(|fields| !fields.is_empty());
    let labels = args.selection.selector.clone();
    let options = ListOptions { labels: labels.clone(), fields: fields.clone(), ..ListOptions::default() };
    let list = context.client.list(events, namespace, &options).await?;
    let wanted = |event: &Object| {
        args.types.is_empty()
            || args
                .types
                .iter()
                .any(|kind| event.get_str("type").is_some_and(|found| found.eq_ignore_ascii_case(kind)))
    };
    let mut items: Vec<Object> = list.items.into_iter().filter(|event| wanted(event)).collect();
    items.sort_by_key(last_seen);
    let format = args.output.clone().unwrap_or(Format::Table);
    let mut columns = Columns::default();
    if let Some(text) = print::whole(&format, &items, false)? {
        context.text(&text)?;
    } else if items.is_empty() && !args.watch {
        context.note(match namespace {
            Some(namespace) => format!("No events found in {namespace} namespace."),
            None => "No events found.".to_string(),
        });
    } else {
        let mut lines = vec![header(namespace.is_none())];
        lines.extend(items.iter().map(|event| row(context, event, namespace.is_none())));
        if args.no_headers {
            lines.remove(0);
        }
        context.text(&columns.lay_out(&lines))?;
    }
    if !args.watch {
        return Ok(0);
    }
    let mut options = WatchOptions {
        labels,
        fields,
        resource_version: Some(list.resource_version),
        timeout_secs: None,
        bookmarks: false,
    };
    loop {
        let mut watch = context.client.watch(events, namespace, &options).await?;
        while let Some(event) = watch.next().await {
            let event = event?;
            if let Some(version) = event.object.resource_version() {
                options.resource_version = Some(version.to_string());
            }
            // Old events make room for new ones; that is no news.
            if matches!(event.kind, EventKind::Deleted | EventKind::Bookmark) || !wanted(&event.object) {
                continue;
            }
            let text = print::whole(&format, std::slice::from_ref(&event.object), true)?;
            let row = || row(context, &event.object, namespace.is_none());
            context.text(&text.unwrap_or_else(|| columns.lay_out(&[row()])))?;
        }
    }
}

fn header(with_namespace: bool) -> Vec<String> {
    let names = ["NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    names.iter().skip(usize::from(!with_namespace)).map(|name| (*name).to_string()).collect()
}

fn row(context: &Context, event: &Object, with_namespace: bool) -> Vec<String> {
    let part = |path: &str| printable(event.get_str(path).unwrap_or(""));
    let object = format!("{}/{}", part("involvedObject.kind"), part("involvedObject.name"));
    let mut cells = vec![age(context, event), part("type"), part("reason"), object, part("message")];
    if with_namespace {
        cells.insert(0, event.namespace().to_string());
    }
    cells
}
