//! `get`: objects as tables, JSON, YAML or names; once, or as they change.

use api::table::table;
use api::{Object, Resource};
use client::{EventKind, ListOptions, WatchOptions};

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest;
use super::print::{self, Columns, Format, Shape};
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show: TYPE, TYPE NAME…, TYPE/NAME…, TYPE,TYPE or all
    #[arg(value_name = "TYPE[/NAME] [NAME…]")]
    words: Vec<String>,
    /// Show the objects that manifests name
    #[arg(long = "filename", short, value_name = "FILE|-|DIR", conflicts_with = "words")]
    files: Vec<String>,
    #[command(flatten)]
    selection: Selection,
    /// Another form: wide, yaml, json, name, jsonpath={…}
    #[arg(long, short, value_parser = print::format, value_name = "FORMAT")]
    output: Option<Format>,
    /// Go on showing what changes
    #[arg(long, short)]
    watch: bool,
    /// Show only what changes
    #[arg(long)]
    watch_only: bool,
    /// Leave out the headers
    #[arg(long)]
    no_headers: bool,
    /// Append the labels
    #[arg(long)]
    show_labels: bool,
    /// Say nothing and succeed if a named object is not there
    #[arg(long)]
    ignore_not_found: bool,
}

/// Which objects of a kind.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// All namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only objects with these labels, as app=web,tier in (a,b)
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Only objects with these fields, as spec.nodeName=node-0
    #[arg(long, value_name = "SELECTOR")]
    pub field_selector: Option<String>,
}

impl Selection {
    /// The namespace to list in; `None` means all.
    pub fn namespace<'a>(&self, context: &'a Context) -> Option<&'a str> {
        (!self.all_namespaces).then(|| context.namespace())
    }

    /// As list options.
    pub fn list(&self) -> ListOptions {
        ListOptions {
            labels: self.selector.clone(),
            fields: self.field_selector.clone(),
            ..ListOptions::default()
        }
    }
}

/// One kind's share of what is to be shown.
struct Group {
    resource: &'static Resource,
    objects: Vec<Object>,
    /// A revision to watch from; empty if the objects were named.
    resource_version: String,
    names: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let targets = targets(context, &args)?;
    let single = matches!(targets.as_slice(), [Target::Object(..)]);
    let named = targets.iter().any(|target| matches!(target, Target::Object(..)));
    if named && (args.selection.selector.is_some() || args.selection.all_namespaces) {
        let flag = if args.selection.all_namespaces { "--all-namespaces" } else { "a selector" };
        return Err(Error::Usage(format!("a resource cannot be retrieved by name and with {flag}")));
    }
    let (groups, errors) = collect(context, &targets, &args).await?;
    let format = args.output.clone().unwrap_or(Format::Table);
    match &format {
        Format::Table | Format::Wide => tables(context, &groups, &args, errors.is_empty())?,
        other => {
            let objects: Vec<Object> =
                groups.iter().flat_map(|group| group.objects.iter().cloned()).collect();
            if !(objects.is_empty() && named) {
                context.text(&print::whole(other, &objects, single)?.unwrap_or_default())?;
            }
        }
    }
    Error::gather(errors)?;
    if args.watch || args.watch_only {
        let [group] = groups.as_slice() else {
            return Err(Error::Usage("you may only specify a single resource type to watch".to_string()));
        };
        watch(context, group, &args, &format).await?;
    }
    Ok(0)
}

fn targets(context: &Context, args: &Args) -> Result<Vec<Target>, Error> {
    if args.files.is_empty() {
        return target::parse(&args.words);
    }
    let manifests = manifest::read_all(&args.files)?;
    let targets = manifests.iter().map(|manifest| {
        manifest.namespace(context.chosen.as_deref(), "default")?;
        Ok(Target::Object(manifest.resource, manifest.name().to_string()))
    });
    targets.collect()
}

/// Reads everything; what is not there is an error beside the rest.
async fn collect(
    context: &Context,
    targets: &[Target],
    args: &Args,
) -> Result<(Vec<Group>, Vec<Error>), Error> {
    let mut groups: Vec<Group> = Vec::new();
    let mut errors = Vec::new();
    for target in targets {
        match target {
            Target::Kind(resource) => {
                let namespace = args.selection.namespace(context);
                let list = context.client.list(resource, namespace, &args.selection.list()).await?;
                let (objects, resource_version) = (list.items, list.resource_version);
                groups.push(Group { resource, objects, resource_version, names: Vec::new() });
            }
            Target::Object(resource, name) => {
                let object = match read(context, resource, name).await {
                    Ok(object) => Some(object),
                    Err(error) if error.is_not_found() => {
                        if !args.ignore_not_found {
                            errors.push(error);
                        }
                        None
                    }
                    Err(error) => return Err(error),
                };
                let last =
                    groups.last_mut().filter(|group| group.resource == *resource && !group.names.is_empty());
                match last {
                    Some(group) => {
                        group.objects.extend(object);
                        group.names.push(name.clone());
                    }
                    None => groups.push(Group {
                        resource,
                        objects: object.into_iter().collect(),
                        resource_version: String::new(),
                        names: vec![name.clone()],
                    }),
                }
            }
        }
    }
    Ok((groups, errors))
}

/// One object under the name its kind was asked for by.
pub async fn read(context: &Context, resource: &'static Resource, name: &str) -> Result<Object, Error> {
    let path = client::resource_path(resource, Some(context.namespace()), Some(name), None);
    let (object, _) = context.client.request_json(client::Request::get(path)).await?;
    Ok(Object(object))
}

fn tables(context: &Context, groups: &[Group], args: &Args, complete: bool) -> Result<(), Error> {
    if args.watch_only {
        return Ok(());
    }
    let filled: Vec<&Group> = groups.iter().filter(|group| !group.objects.is_empty()).collect();
    if filled.is_empty() && complete {
        let scoped = groups.iter().any(|group| group.resource.namespaced) && !args.selection.all_namespaces;
        if !args.ignore_not_found && groups.iter().all(|group| group.names.is_empty()) {
            match scoped {
                true => {
                    context.note(format_args!("No resources found in {} namespace.", context.namespace()))
                }
                false => context.note("No resources found"),
            }
        }
        return Ok(());
    }
    let many = groups.len() > 1;
    for (index, group) in filled.iter().enumerate() {
        if index > 0 {
            context.line("")?;
        }
        let mut lines = lines(context, group.resource, &group.objects, args, many);
        if args.no_headers {
            lines.remove(0);
        }
        context.text(&Columns::default().lay_out(&lines))?;
    }
    Ok(())
}

fn lines(
    context: &Context,
    resource: &'static Resource,
    objects: &[Object],
    args: &Args,
    many: bool,
) -> Vec<Vec<String>> {
    let shape = Shape {
        with_namespace: args.selection.all_namespaces && resource.namespaced,
        with_kind: many,
        wide: args.output == Some(Format::Wide),
        with_labels: args.show_labels,
    };
    print::lines(resource, &table(resource, objects, shape.wide, context.now()), shape)
}

/// Shows changes until the daemon goes away or our reader does.
async fn watch(context: &Context, group: &Group, args: &Args, format: &Format) -> Result<(), Error> {
    if group.names.len() > 1 {
        return Err(Error::Usage("you may only specify a single name to watch".to_string()));
    }
    let namespace =
        if group.names.is_empty() { args.selection.namespace(context) } else { Some(context.namespace()) };
    let name = group.names.first().map(|name| format!("metadata.name={name}"));
    let mut options = WatchOptions {
        labels: args.selection.selector.clone(),
        fields: args.selection.field_selector.clone().or(name),
        resource_version: Some(group.resource_version.clone()).filter(|version| !version.is_empty()),
        timeout_secs: None,
        bookmarks: false,
    };
    if options.resource_version.is_none() {
        // From the object that was shown.
        options.resource_version =
            group.objects.first().and_then(Object::resource_version).map(|version| version.to_string());
    }
    let mut columns = Columns::default();
    let first = lines(context, group.resource, &group.objects, args, false);
    columns.lay_out(&first);
    let mut show_header = (args.watch_only || group.objects.is_empty()) && !args.no_headers;
    loop {
        let mut watch = context.client.watch(group.resource, namespace, &options).await?;
        while let Some(event) = watch.next().await {
            let event = event?;
            if let Some(version) = event.object.resource_version() {
                options.resource_version = Some(version.to_string());
            }
            if event.kind == EventKind::Bookmark {
                continue;
            }
            let text = match print::whole(format, std::slice::from_ref(&event.object), true)? {
                Some(text) => text,
                None => {
                    let mut lines = lines(context, group.resource, &[event.object], args, false);
                    if !std::mem::take(&mut show_header) {
                        lines.remove(0);
                    }
                    columns.lay_out(&lines)
                }
            };
            context.text(&text)?;
        }
        // The server ends long watches; go on from where it was.
    }
}
