"""An image's packages as a CycloneDX document (ECMA-424, 1.6), by cyclonedx-python-lib.

Equal images make equal documents: the serial number is made of the image's digest, and the time
is that of the image.
"""

from __future__ import annotations

import datetime
import re
import uuid
from typing import TYPE_CHECKING

from ringzero.errors import MissingToolError
from ringzero.image.sbom.packages import Inventory, Package
from ringzero.version import __version__

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

# PEP 503: names of Python's packages that are one.
_SEPARATORS = re.compile(r"[-_.]+")
_EPOCH = "1970-01-01T00:00:00Z"


def document(found: Inventory, name: str, digest: str, created: str) -> str:
    """Return the document, as JSON, of an image called `name`, made at `created` (RFC 3339).

    Raises MissingToolError where the library is not installed.
    """
    try:
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as fault:
        raise MissingToolError(
            "a bill of materials needs the package cyclonedx-python-lib",
            hint="pip install 'ringzero[sbom]'",
        ) from fault
    own = Component(
        name="ringzero", version=__version__, type=ComponentType.APPLICATION, bom_ref="ringzero"
    )
    image = Component(
        name=name, version=digest, type=ComponentType.CONTAINER, bom_ref=f"image@{digest}"
    )
    bom = Bom(
        components=[_component(package, found) for package in found.packages],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, digest),
        metadata=BomMetaData(component=image, timestamp=_time(created)),
    )
    bom.metadata.tools.components.add(own)
    if found.distribution:
        system = Component(
            name=found.distribution,
            version=found.release or None,
            type=ComponentType.OPERATING_SYSTEM,
            description=found.pretty_name or None,
            bom_ref="operating-system",
        )
        bom.components.add(system)
    for place in found.unread:
        bom.metadata.properties.add(Property(name="ringzero:unread-database", value=place))
    bom.register_dependency(image, bom.components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)


def _component(package: Package, found: Inventory) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = _package_url(package, found)
    licenses = [LicenseFactory().make_from_string(package.license)] if package.license else []
    references = []
    if package.homepage:
        url = XsUri(package.homepage)
        references.append(ExternalReference(type=ExternalReferenceType.WEBSITE, url=url))
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl,
        purl=PackageURL.from_string(purl),
        licenses=licenses,
        external_references=references,
    )


def _package_url(package: Package, found: Inventory) -> str:
    from packageurl import PackageURL

    name, qualifiers = package.name, {}
    space: str | None = None
    if package.kind == "pypi":
        name = _SEPARATORS.sub("-", name).lower()
    else:
        space = found.distribution or {"deb": "debian", "apk": "alpine"}[package.kind]
        qualifiers["arch"] = package.architecture
        if package.source and package.source != package.name:
            qualifiers["upstream"] = package.source
        if found.distribution and found.release:
            qualifiers["distro"] = f"{found.distribution}-{found.release}"
    chosen = {key: value for key, value in qualifiers.items() if value}
    return PackageURL(package.kind, space, name, package.version, chosen).to_string()


def _time(text: str) -> datetime.datetime:
    for candidate in (text, _EPOCH):
        # Docker writes nanoseconds.
        cut = re.sub(r"(\.\d{6})\d+", r"\1", candidate)
        try:
            found = datetime.datetime.fromisoformat(cut)
        except ValueError:
            continue
        return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    raise AssertionError("the epoch is a time")
