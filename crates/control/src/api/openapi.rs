//! The description of the API (OpenAPI 3.1), and the scopes that it asks for.
//!
//! Routes describe themselves; what all of them have in common is added here. The scope of a route is read from its
//! description, so that what is described is what is enforced.

use std::collections::HashMap;

use http::Method;
use queztl_api::{Problem, Scope};
use utoipa::openapi::path::{HttpMethod, Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Info, License, ObjectBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder, Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::answer::PROBLEM;
use super::app::App;
use super::routes;

/// The name of the security scheme.
const TOKEN: &str = "token";

/// Paths whose answers hold secrets, and are not kept.
const SECRETS: [&str; 3] = ["/v1/tokens", "/v1/dashboard", "/v1/node/token"];

/// What each route needs.
#[derive(Debug, Default)]
pub struct Scopes(HashMap<String, HashMap<Method, Scope>>);

impl Scopes {
    pub fn get(&self, method: &Method, path: &str) -> Option<Scope> {
        self.0.get(path)?.get(method).copied()
    }
}

/// The whole description as JSON, as `docs/openapi.json` has it.
pub fn description() -> String {
    let router: OpenApiRouter<App> = routes::quick().merge(routes::patient());
    let mut document = router.into_openapi();
    complete(&mut document);
    text(&document)
}

/// Adds what all routes have in common; gives the scopes they ask for.
pub fn complete(document: &mut OpenApi) -> Scopes {
    document.info = Info::new("Queztl", env!("CARGO_PKG_VERSION"));
    document.info.description =
        Some("The daemon of queztl-hv: virtual machines, snapshots, clones and images on one host.".to_owned());
    document.info.license = Some(License::builder().name("Apache-2.0").identifier(Some("Apache-2.0")).build());
    let components = document.components.get_or_insert_with(Default::default);
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let bearer = bearer.description(Some(
        "Over TCP. A token's scope covers those before it: read, operate, admin. Over the Unix socket nothing is needed.",
    ));
    components.add_security_scheme(TOKEN, SecurityScheme::Http(bearer.build()));
    let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.schemas.values_mut().for_each(describe_fields);
    let mut scopes = Scopes::default();
    for (path, item) in &mut document.paths.paths {
        for (method, http, operation) in operations(item) {
            add_common(operation, method == HttpMethod::Post && !SECRETS.contains(&path.as_str()));
            let scope = scope(operation).unwrap_or(Scope::Admin);
            scopes.0.entry(path.clone()).or_default().insert(http, scope);
        }
    }
    scopes
}

/// The document as it is served and kept: with line ends, so that differences can be read.
pub fn text(document: &OpenApi) -> String {
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Lifts the description of a field that refers to another type to the field itself, where readers look for it: the
/// generator leaves it beside the `$ref`, inside of a `oneOf`.
fn describe_fields(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => object.properties.values_mut().for_each(lift_description),
        RefOr::T(Schema::OneOf(one)) => one.items.iter_mut().for_each(describe_fields),
        RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().for_each(describe_fields),
        _ => {}
    }
}

fn lift_description(field: &mut RefOr<Schema>) {
    let RefOr::T(Schema::OneOf(one)) = field else { return };
    for item in &mut one.items {
        if let RefOr::Ref(reference) = item
            && one.description.is_none()
            && !reference.description.is_empty()
        {
            one.description = Some(std::mem::take(&mut reference.description));
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, Method, &mut Operation)> {
    [
        (HttpMethod::Get, Method::GET, item.get.as_mut()),
        (HttpMethod::Put, Method::PUT, item.put.as_mut()),
        (HttpMethod::Post, Method::POST, item.post.as_mut()),
        (HttpMethod::Patch, Method::PATCH, item.patch.as_mut()),
        (HttpMethod::Delete, Method::DELETE, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, http, operation)| operation.map(|operation| (method, http, operation)))
}

fn add_common(operation: &mut Operation, takes_key: bool) {
    for (status, text) in [("4XX", "The request was refused."), ("5XX", "It could not be done now.")] {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
        let response = ResponseBuilder::new().description(text).content(PROBLEM, problem).build();
        operation.responses.responses.insert(status.to_owned(), RefOr::T(response));
    }
    if takes_key {
        let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("Makes the request safe to be sent again: it is done once, and answered as before."))
            .schema(Some(text.build()))
            .build();
        operation.parameters.get_or_insert_default().push(key);
    }
}

/// The scope in an operation's description.
fn scope(operation: &Operation) -> Option<Scope> {
    let security = serde_json::to_value(operation.security.as_ref()?.first()?).ok()?;
    serde_json::from_value(security.get(TOKEN)?.get(0)?.clone()).ok()
}
