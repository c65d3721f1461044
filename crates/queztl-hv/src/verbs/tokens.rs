//! `token`.

use queztl_api::{CreateToken, Name, NewToken, Scope};
use queztl_client::Error;

use super::session::{Session, failure};
use crate::cli::{OutputFormat, ScopeArg, TokenCommand};
use crate::output::{self, List, Made};
use crate::report::Failure;
use crate::status::Status;

/// Makes, lists and deletes tokens.
pub async fn token(session: &Session, command: TokenCommand) -> Result<Status, Failure> {
    match command {
        TokenCommand::Create { name, scope, expires, output } => {
            let request = CreateToken { name, scope: scope.into(), expires_in_seconds: expires };
            let made = session.client.create_token(&request).await.map_err(failure)?;
            print(made, output.format)
        }
        TokenCommand::List { output } => {
            let tokens = session.client.tokens().await.map_err(failure)?;
            output::print(&List(&tokens), output.format)
        }
        TokenCommand::Delete { names } => delete(session, &names).await,
    }
}

/// The secret alone, so that a script can take it.
fn print(made: NewToken, format: OutputFormat) -> Result<Status, Failure> {
    let table = format!("{}\n", made.secret);
    let names = vec![made.token.name.to_string()];
    output::print(&Made { value: made, table, names }, format)
}

async fn delete(session: &Session, names: &[Name]) -> Result<Status, Failure> {
    let deleted = names.iter().map(|name| session.client.delete_token(name));
    let failed = |(name, ended): (&Name, Result<(), Error>)| Some(failure(ended.err()?).about(name.as_str()).report());
    let ended = names.iter().zip(futures_util::future::join_all(deleted).await);
    let statuses: Vec<Status> = ended.filter_map(failed).collect();
    Ok(statuses.first().copied().unwrap_or(Status::Success))
}

impl From<ScopeArg> for Scope {
    fn from(arg: ScopeArg) -> Scope {
        match arg {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Operate => Scope::Operate,
            ScopeArg::Admin => Scope::Admin,
        }
    }
}
