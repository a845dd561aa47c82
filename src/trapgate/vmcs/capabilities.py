"""What a profile's processor has beyond what Intel ships; for software that wants to ask."""

from dataclasses import dataclass

from trapgate.decision.fault_filters import FILTERS
from trapgate.decision.rules import SCHEMES
from trapgate.errors import ExtensionError
from trapgate.sdm.fields import EXTENSION_FIELDS, Field
from trapgate.vmcs.file import PROFILES, Profile


@dataclass(frozen=True)
class Capabilities:
    """What a profile's processor has beyond what Intel ships.

    `fields` are the extension fields that may be set; `schemes` the names of the
    control-transfer rules that can be selected (`rules.SCHEMES`), `filters` those of the
    fault filters (`fault_filters.FILTERS`).
    """

    profile: Profile
    fields: frozenset[Field]
    schemes: tuple[str, ...]
    filters: tuple[str, ...]

    def has(self, extension: Field | str) -> bool:
        """Whether an extension field, or a scheme or filter by its name, may be used."""
        if isinstance(extension, Field):
            return extension in self.fields
        names = {field.name for field in self.fields}
        return extension in names.union(self.schemes, self.filters)


def capabilities(profile: Profile) -> Capabilities:
    """The extensions that `profile` has.

    Raises:
        ExtensionError: there is no such profile.
    """
    if profile == "vt-x":
        return Capabilities(profile, frozenset(), ("figure-3",), ("none",))
    if profile == "extended":
        return Capabilities(profile, EXTENSION_FIELDS, tuple(SCHEMES), tuple(FILTERS))
    raise ExtensionError(f"{profile!r} is not a profile; use one of {', '.join(PROFILES)}")
