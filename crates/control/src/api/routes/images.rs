//! Images.

use axum::extract::State;
use http::StatusCode;
use queztl_api::{ConvertImage, CreateImage, Image, ImportImage, Name, Operation, Page, PageQuery, ResizeImage};

use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Nothing, Query, Segments};
use crate::api::page::{Order, page};

/// Lists the images of the store, by name.
#[utoipa::path(get, path = "/v1/images", tag = "images", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Image>)))]
pub async fn list_images(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Image>>> {
    let images = app.service().images().await?;
    page(images, &query, Order::Ascending, |image| image.name.to_string()).map(Json)
}

/// Makes an image: empty, or on top of another.
#[utoipa::path(post, path = "/v1/images", tag = "images", security(("token" = ["admin"])),
    request_body = CreateImage, responses((status = 202, description = "It is being made.", body = Operation)))]
pub async fn create_image(State(app): State<App>, Json(request): Json<CreateImage>) -> Answer<Accepted> {
    Ok(Accepted(app.service().create_image(request).await?))
}

/// Takes a file of the host into the store.
#[utoipa::path(post, path = "/v1/images/import", tag = "images", security(("token" = ["admin"])),
    request_body = ImportImage, responses((status = 202, description = "It is being copied.", body = Operation)))]
pub async fn import_image(State(app): State<App>, Json(request): Json<ImportImage>) -> Answer<Accepted> {
    Ok(Accepted(app.service().import_image(request).await?))
}

/// Tells of an image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images", security(("token" = ["read"])),
    params(("image" = Name, Path, description = "Its name.")),
    responses((status = 200, description = "The image.", body = Image)))]
pub async fn get_image(State(app): State<App>, Segments(name): Segments<Name>) -> Answer<Json<Image>> {
    Ok(Json(app.service().image(&name).await?))
}

/// Deletes an image that nothing uses.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images", security(("token" = ["admin"])),
    params(("image" = Name, Path, description = "Its name.")),
    responses((status = 204, description = "It is gone.")))]
pub async fn delete_image(State(app): State<App>, Segments(name): Segments<Name>) -> Answer<StatusCode> {
    app.service().delete_image(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks whether an image's tables agree; the operation's result is a `CheckReport`.
#[utoipa::path(post, path = "/v1/images/{image}/check", tag = "images", security(("token" = ["operate"])),
    params(("image" = Name, Path, description = "Its name.")),
    responses((status = 202, description = "It is being checked.", body = Operation)))]
pub async fn check_image(State(app): State<App>, Segments(name): Segments<Name>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().check_image(&name).await?))
}

/// Copies an image into another format, without its backing images.
#[utoipa::path(post, path = "/v1/images/{image}/convert", tag = "images", security(("token" = ["admin"])),
    params(("image" = Name, Path, description = "Its name.")),
    request_body = ConvertImage, responses((status = 202, description = "It is being copied.", body = Operation)))]
pub async fn convert_image(
    State(app): State<App>,
    Segments(name): Segments<Name>,
    Json(request): Json<ConvertImage>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().convert_image(&name, request).await?))
}

/// Gives an image another size.
#[utoipa::path(post, path = "/v1/images/{image}/resize", tag = "images", security(("token" = ["admin"])),
    params(("image" = Name, Path, description = "Its name.")),
    request_body = ResizeImage, responses((status = 202, description = "It is being resized.", body = Operation)))]
pub async fn resize_image(
    State(app): State<App>,
    Segments(name): Segments<Name>,
    Json(request): Json<ResizeImage>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().resize_image(&name, request).await?))
}
