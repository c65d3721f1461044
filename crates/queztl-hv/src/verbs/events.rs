//! `events`.

use queztl_api::Event;

use super::session::{Session, failure};
use crate::cli::{EventsArgs, OutputFormat};
use crate::output::text::{plain, time};
use crate::output::{self, List, Row, json_line};
use crate::report::Failure;
use crate::status::Status;

/// Shows past events, and with `--follow` those that come: one a line, so that a program can read them as they come.
pub async fn events(session: &Session, args: &EventsArgs) -> Result<Status, Failure> {
    let limit = args.lines as usize;
    let past = if limit > 0 { session.client.past_events(limit).await.map_err(failure)? } else { Vec::new() };
    if !args.follow {
        return output::print(&List(&past), args.output.format);
    }
    let mut events = session.client.events(past.last().map(|event| event.sequence)).await.map_err(failure)?;
    for event in &past {
        crate::print(&line(event, args.output.format)?);
    }
    while let Some(event) = events.next().await.map_err(failure)? {
        if !crate::try_print(&line(&event, args.output.format)?) {
            return Ok(Status::Success);
        }
    }
    Err(Failure::host("the daemon ended; queztl-hv daemon status tells more"))
}

fn line(event: &Event, format: OutputFormat) -> Result<String, Failure> {
    Ok(match format {
        OutputFormat::Table | OutputFormat::Wide => {
            let number = if format == OutputFormat::Wide { format!("{:>8}  ", event.sequence) } else { String::new() };
            format!("{number}{}  {:<18}  {}\n", time(event.at), event.name(), plain(&event.message))
        }
        OutputFormat::Name => format!("{}\n", event.name()),
        OutputFormat::Json => json_line(event)?,
        // A stream of YAML documents, each in the form of JSON, which is YAML's too.
        OutputFormat::Yaml => format!("--- {}", json_line(event)?),
    })
}
