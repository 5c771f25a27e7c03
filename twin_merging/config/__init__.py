"""The schema: every config key with its type, default, unit and range, and the components that each group knows.

``configs/GROUP/OPTION.yaml`` sets values; this package says which keys exist and what they may be. Nothing heavy is
imported here, so a configuration is checked before any work, and before torch, is loaded.
"""

from twin_merging.config.data_methods import *  # noqa: F403
from twin_merging.config.domains import *  # noqa: F403
from twin_merging.config.experts import *  # noqa: F403
from twin_merging.config.field import *  # noqa: F403
from twin_merging.config.language import *  # noqa: F403
from twin_merging.config.merging import *  # noqa: F403
from twin_merging.config.option import *  # noqa: F403
from twin_merging.config.registries import *  # noqa: F403
from twin_merging.config.running import *  # noqa: F403
from twin_merging.config.sparsifiers import *  # noqa: F403
