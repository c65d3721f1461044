//! Tokens.

use axum::extract::State;
use http::StatusCode;
use queztl_api::{CreateToken, Name, NewToken, Page, PageQuery, Token};

use crate::api::answer::{Answer, Created, Json};
use crate::api::app::App;
use crate::api::extract::{Query, Segments};
use crate::api::page::{Order, page};

/// Lists the tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", security(("token" = ["admin"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Token>)))]
pub async fn list_tokens(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Token>>> {
    let tokens = app.service().tokens().await?;
    page(tokens, &query, Order::Ascending, |token| token.name.to_string()).map(Json)
}

/// Makes a token. Its secret is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", security(("token" = ["admin"])),
    request_body = CreateToken, responses((status = 201, description = "The token with its secret.", body = NewToken)))]
pub async fn create_token(State(app): State<App>, Json(request): Json<CreateToken>) -> Answer<Created<NewToken>> {
    Ok(Created(app.service().create_token(request).await?))
}

/// Ends a token.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tokens", security(("token" = ["admin"])),
    params(("token" = Name, Path, description = "Its name.")),
    responses((status = 204, description = "It is worth nothing any more.")))]
pub async fn delete_token(State(app): State<App>, Segments(name): Segments<Name>) -> Answer<StatusCode> {
    app.service().delete_token(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
