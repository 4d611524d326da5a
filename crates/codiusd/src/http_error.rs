//! How the API says no: one mapping from what can go wrong to a status and a body.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use codius_api::{ErrorBody, Trouble, Units};
use codius_manifest::ManifestError;
use codius_pod::{DriverError, ImageError, StartError};

/// An error reply.
#[derive(Debug, Clone)]
pub(crate) struct HttpError {
    body: Box<ErrorBody>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl HttpError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            body: Box::new(ErrorBody::new(status.as_u16(), message)),
            header: None,
        }
    }

    pub(crate) fn cause(mut self, cause: Trouble) -> Self {
        self.body = Box::new(self.body.with_cause(cause.into()));
        self
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.body = Box::new(self.body.with_detail(detail));
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.body = Box::new(self.body.with_next(next));
        self
    }

    /// Says what became of the money that was paid for this request.
    pub(crate) fn money(mut self, refunded: u64, owed: u64) -> Self {
        self.body = Box::new(self.body.with_money(Units(refunded), Units(owed)));
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    pub(crate) fn status(&self) -> u16 {
        self.body.status_code
    }

    pub(crate) fn body(&self) -> &ErrorBody {
        &self.body
    }

    /// A fault of this host: logged by the caller, and told without its insides.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "An internal server error occurred",
        )
        .cause(Trouble::HostError)
        .next("try again, or take another host")
    }
}

impl From<ManifestError> for HttpError {
    fn from(error: ManifestError) -> Self {
        let status =
            StatusCode::from_u16(error.family().http_status()).unwrap_or(StatusCode::BAD_REQUEST);
        let details: Vec<String> = error.details().iter().map(ToString::to_string).collect();
        let next = error.details().first().map_or("", |first| first.next_step);
        Self::new(status, error.to_string())
            .detail(details.join("; "))
            .cause(Trouble::ManifestInvalid)
            .next(next)
    }
}

impl From<ImageError> for HttpError {
    fn from(error: ImageError) -> Self {
        let (status, cause) = match &error {
            ImageError::InvalidReference { .. }
            | ImageError::WrongPlatform { .. }
            | ImageError::Invalid { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ImageInvalid)
            }
            ImageError::NotFound { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ImageNotFound)
            }
            ImageError::TooLarge { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ImageTooLarge)
            }
            ImageError::Unavailable { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                Trouble::RegistryUnavailable,
            ),
            ImageError::Denied { .. } => {
                return Self::new(StatusCode::FORBIDDEN, error.to_string())
                    .cause(Trouble::NotAllowed)
                    .next("use another image, or take another host");
            }
            ImageError::NoRoom { .. } => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                    .cause(Trouble::HostFull)
                    .next("take another host, or come back later");
            }
            ImageError::Host { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "image store");
                return Self::internal();
            }
        };
        Self::new(status, error.to_string()).cause(cause).next(
            if cause == Trouble::RegistryUnavailable {
                "try again later, or use an image of another registry"
            } else {
                "correct the image or its name in the manifest"
            },
        )
    }
}

impl From<StartError> for HttpError {
    fn from(error: StartError) -> Self {
        let message = error.to_string();
        let (status, cause) = match error {
            StartError::Image(error) => return error.into(),
            StartError::Driver(error) => match error {
                DriverError::Unsupported { .. } => {
                    (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ManifestInvalid)
                }
                DriverError::Container { .. } => {
                    (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ProgramFailed)
                }
                DriverError::Boot { .. } | DriverError::NotRunning => {
                    (StatusCode::INTERNAL_SERVER_ERROR, Trouble::PodLost)
                }
                DriverError::Host { .. } => {
                    tracing::error!(error = &error as &dyn std::error::Error, "driver");
                    return Self::internal();
                }
            },
            StartError::Exited { .. } | StartError::Finished { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Trouble::ProgramFailed)
            }
            StartError::PortNotOpened { .. } | StartError::LoopbackOnly { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Trouble::PortNotOpened)
            }
            StartError::Lost { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Trouble::PodLost),
        };
        Self::new(status, message)
            .cause(cause)
            .next(if cause == Trouble::PodLost {
                "try again, or take another host"
            } else {
                "correct the program or its manifest, then upload it again"
            })
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.body.status_code)
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = (status, Json(self.body)).into_response();
        let headers = reply.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        reply
    }
}
