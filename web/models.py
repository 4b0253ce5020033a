"""The models that can be asked: Headrace's own first, then the model server's."""

from typing import Final

from aiohttp import web

from domain.errors import ChatError
from web.ask import HEADRACE
from web.bodies import give
from web.errors import ApiError
from web.openai_shapes import ModelList, ModelObject
from web.site import SITE, Site

OWN: Final = ModelObject(id=HEADRACE, owned_by=HEADRACE)


async def list_all(request: web.Request) -> web.StreamResponse:
    """List the models."""
    return give(ModelList(data=await _models(request.app[SITE])))


async def read(request: web.Request) -> web.StreamResponse:
    """Return one model."""
    model_id = request.match_info["model_id"]
    for model in await _models(request.app[SITE]):
        if model.id == model_id:
            return give(model)
    raise ApiError(404, "model_not_found", f"There is no model {model_id[:200]!r}.", param="model")


async def _models(site: Site) -> list[ModelObject]:
    try:
        upstream = await site.chat.services.model.models()
    except ChatError:
        upstream = []  # questions are taken all the same, and wait, or say what is wrong
    return [OWN, *(ModelObject(id=name, owned_by="model-server") for name in upstream if name != HEADRACE)]
