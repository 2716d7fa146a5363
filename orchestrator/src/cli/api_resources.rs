//! `api-resources`: the kinds that are served, from the table that serves them.

use api::RESOURCES;
use api::resource::VERBS;

use super::context::Context;
use super::error::Outcome;
use super::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `wide` adds verbs and categories, `name` shows only names
    #[arg(long, short, value_name = "FORMAT", value_parser = ["wide", "name"])]
    output: Option<String>,
    /// Leave out the headers
    #[arg(long)]
    no_headers: bool,
    /// Only kinds inside (true) or outside (false) namespaces
    #[arg(long)]
    namespaced: Option<bool>,
}

pub fn run(context: &Context, args: &Args) -> Outcome {
    let rows = RESOURCES.iter().filter(|row| args.namespaced.is_none_or(|wanted| wanted == row.namespaced));
    if args.output.as_deref() == Some("name") {
        for row in rows {
            context.line(row.group_resource())?;
        }
        return Ok(0);
    }
    let wide = args.output.is_some();
    let mut header = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
    if wide {
        header.extend(["VERBS", "CATEGORIES"]);
    }
    let rows = rows.map(|row| {
        let mut cells = vec![
            row.plural.to_string(),
            row.short_names.join(","),
            row.api_version(),
            row.namespaced.to_string(),
            row.kind.to_string(),
        ];
        if wide {
            cells.extend([VERBS.join(","), row.categories.join(",")]);
        }
        cells
    });
    let text = print::columns(&header, rows.collect());
    let text = if args.no_headers { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    context.text(text)?;
    Ok(0)
}
