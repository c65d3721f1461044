//! One connection: greeting, then requests one after the other.

use std::os::fd::OwnedFd;
use std::time::Duration;

use queztl_agent_protocol::{FaultCode, Identity, Message, Summary, VERSION, features};

use crate::channel::{Broken, Channel};
use crate::{Machine, exec, files};

/// Serves the host on this connection until it ends.
pub fn serve(stream: OwnedFd, machine: &dyn Machine) {
    let Ok(mut channel) = Channel::new(stream) else { return };
    if let Err(Broken::Protocol(text)) = converse(&mut channel, machine) {
        // If the host does not take the reason either, there is nobody to tell.
        let _ = channel.fail(FaultCode::Protocol, format_args!("the host does not keep to the protocol: {text}"));
    }
}

/// Tells the host that there are too many sessions.
pub fn refuse(stream: OwnedFd) {
    if let Ok(mut channel) = Channel::new(stream) {
        // One small message into an empty socket; a host that is gone needs none.
        let _ = channel.fail(FaultCode::Busy, "the guest's agent has too many sessions; end some and try again");
    }
}

fn converse(channel: &mut Channel, machine: &dyn Machine) -> Result<(), Broken> {
    if !greet(channel)? {
        return Ok(());
    }
    loop {
        match channel.receive()? {
            Message::Exec(request) => exec::run(channel, &request)?,
            Message::Put { path, name } => files::take(channel, &path, &name)?,
            Message::Get { path } => files::give(channel, &path)?,
            Message::Identity(identity) => match change(machine, &identity) {
                Ok(()) => channel.send(&Message::Done(Summary::default()))?,
                Err(text) => channel.fail(FaultCode::System, text)?,
            },
            Message::Shutdown { how, grace_ms } => {
                // The answer goes first: soon there is nobody who could give one.
                channel.send(&Message::Done(Summary::default()))?;
                if let Err(error) = machine.shut_down(how, Duration::from_millis(grace_ms.into())) {
                    eprintln!("queztl-agent: cannot shut down: {error}");
                }
            }
            // Late messages for a command that has ended.
            Message::Signal { .. } | Message::Resize(_) | Message::Credit { .. } => {}
            Message::Data { .. } | Message::End { .. } => {}
            other => return Err(Broken::Protocol(format!("a request was expected, not {}", name(&other)))),
        }
    }
}

/// The greeting; whether there is a version in common.
fn greet(channel: &mut Channel) -> Result<bool, Broken> {
    let Message::Hello { min, max, features } = channel.receive()? else {
        return Err(Broken::Protocol("a connection begins with a hello".into()));
    };
    if !(min..=max).contains(&VERSION) {
        let text = format!(
            "the guest's agent speaks version {VERSION} of the protocol and the host {min} to {max}; \
             make the guest's image anew or use a matching queztl-hv"
        );
        channel.fail(FaultCode::Version, text)?;
        return Ok(false);
    }
    let agent = concat!("queztl-agent ", env!("CARGO_PKG_VERSION")).as_bytes().to_vec();
    channel.send(&Message::Welcome { version: VERSION, features: features & features::ALL, agent })?;
    Ok(true)
}

/// Entropy first, so that nothing that the new identity starts sees the old generator; then clock and host name.
fn change(machine: &dyn Machine, identity: &Identity) -> Result<(), String> {
    if let Some(entropy) = &identity.entropy {
        machine.add_entropy(entropy).map_err(|error| format!("cannot add entropy in the guest: {error}"))?;
    }
    if let Some(time) = identity.clock {
        machine.set_clock(time).map_err(|error| format!("cannot set the guest's clock: {error}"))?;
    }
    if let Some(name) = &identity.host_name {
        machine.set_host_name(name).map_err(|error| format!("cannot set the guest's host name: {error}"))?;
    }
    Ok(())
}

/// For messages about messages: without the content.
fn name(message: &Message) -> String {
    let text = format!("{message:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
