"""One configuration from arguments, environment, file, preset and default."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from gossip.config import GossipConfig
from mesh.config import PRESETS, GossipSection, LinksSection, MeshConfig
from mesh.errors import ConfigError
from mesh.settings import settings_of
from transport.config import LinkConfig
from transport.types import Address


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own settings out."""
    for name in list(os.environ):
        if name.upper().startswith("MESH_"):
            monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> Path:
    """A file with this content."""
    path = tmp_path / "mesh.toml"
    path.write_text(text)
    return path


def test_sources_win_in_their_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats the environment, which beats the file, which beats the preset, which beats the default."""
    path = written(
        tmp_path,
        'preset = "wan"\n[links]\nkeepalive_interval_s = 2.0\nkeepalive_timeout_s = 20.0\ndial_timeout_s = 7.0\n',
    )
    monkeypatch.setenv("MESH_LINKS__KEEPALIVE_TIMEOUT_S", "30")
    monkeypatch.setenv("MESH_LINKS__DIAL_TIMEOUT_S", "8")
    config = MeshConfig.load(path, links={"dial_timeout_s": 9.0})
    assert config.links.dial_timeout_s == 9.0
    assert config.links.keepalive_timeout_s == 30.0
    assert config.links.keepalive_interval_s == 2.0
    assert config.gossip.suspicion_s == GossipConfig.wan().suspicion_s
    assert config.links.links_max == LinkConfig().links_max


def test_none_as_an_override_means_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers pass their optional arguments through without looking at them."""
    monkeypatch.setenv("MESH_NODE_ID", "from-environment")
    assert MeshConfig.load(None, node_id=None, bootstrap=None).node_id == "from-environment"


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("ON", True), ("1", True), ("yes", True), ("off", False), ("0", False)]
)
def test_yes_and_no_have_several_spellings(text: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a shell script's author is used to."""
    monkeypatch.setenv("MESH_MDNS", text)
    assert MeshConfig().mdns is expected


def test_numbers_may_be_text_and_names_of_variables_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment holds text only, and some systems change the case of its names."""
    monkeypatch.setenv("mesh_links__links_max", "12")
    assert MeshConfig(messages={"request_timeout_s": "2.5"}).messages.request_timeout_s == 2.5
    assert MeshConfig().links.links_max == 12


def test_a_section_object_sets_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is finished, so neither the environment nor the preset changes it; a mapping sets what it names."""
    monkeypatch.setenv("MESH_LINKS__LINKS_MAX", "12")
    assert MeshConfig(preset="wan", links=LinksSection(dial_timeout_s=3.0)).links == LinksSection(dial_timeout_s=3.0)


def test_a_configuration_is_frozen() -> None:
    """What a node runs with is what it was given."""
    config = MeshConfig()
    with pytest.raises(FrozenInstanceError):
        config.mdns = False  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.links.links_max = 1  # type: ignore[misc]


@pytest.mark.parametrize("preset", ["local", "lan", "wan"])
def test_a_preset_reaches_the_layers_below(preset: str) -> None:
    """With nothing else given, the layers get exactly their own presets."""
    config = MeshConfig.load(preset=preset)
    assert config.link_config() == getattr(LinkConfig, preset)()
    assert config.gossip_config() == getattr(GossipConfig, preset)()


def test_settings_reach_the_layers_below() -> None:
    """A section's value is what the layer's own configuration holds, and the rest stays the preset's."""
    config = MeshConfig.load(preset="wan", links={"links_max": 100}, gossip={"suspicion_s": 9.0})
    assert config.link_config().links_max == 100
    assert config.link_config().write_buffer_bytes == LinkConfig.wan().write_buffer_bytes
    assert config.gossip_config().suspicion_s == 9.0
    assert config.gossip_config().links_max == 100, "gossip must not dial more than the links allow"


def test_section_keys_are_called_what_the_layers_call_them() -> None:
    """One name for one thing: every key of a section is a field of the layer's configuration."""
    assert settings_of(LinksSection).keys() <= {one.name for one in fields(LinkConfig)}
    assert settings_of(GossipSection).keys() <= {one.name for one in fields(GossipConfig)}


def test_the_lan_preset_is_the_default() -> None:
    """Nothing given and preset lan given are the same."""
    assert MeshConfig.load() == MeshConfig.load(preset="lan")
    assert set(PRESETS) == {"local", "lan", "wan"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5:1,b", (Address("10.0.0.5", 1), Address("b", 7946))),
        ("wss://a:1 b:2", (Address("a", 1), Address("b", 2))),
        ("", ()),
    ],
)
def test_lists_in_the_environment_are_separated_by_commas_or_spaces(
    text: str, expected: tuple[Address, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """People write lists in the environment without JSON."""
    monkeypatch.setenv("MESH_BOOTSTRAP", text)
    assert MeshConfig().bootstrap == expected


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_CONFIG is read when no file is given."""
    monkeypatch.setenv("MESH_CONFIG", str(written(tmp_path, 'network = "lab"\n')))
    assert MeshConfig.load().network == "lab"


def test_a_finished_configuration_takes_overrides_and_stays_as_it_was() -> None:
    """Overrides of a MeshConfig change only what they name."""
    before = MeshConfig.load(node_id="n1", links={"links_max": 7}, join_token="pm1.secret")
    after = MeshConfig.load(before, mdns=False, links={"dial_timeout_s": 3})
    assert (after.node_id, after.mdns, after.links.links_max, after.links.dial_timeout_s) == ("n1", False, 7, 3.0)
    assert after.join_token == before.join_token
    assert before.mdns is True
    assert MeshConfig.load(before) is before


def test_a_preset_cannot_change_under_a_finished_configuration() -> None:
    """The timings it would set are set already, so it is refused rather than ignored."""
    with pytest.raises(ConfigError, match="preset"):
        MeshConfig.load(MeshConfig(), preset="wan")


def test_the_join_token_is_not_shown() -> None:
    """Configurations are logged; tokens admit."""
    config = MeshConfig.load(join_token="pm1.secret")
    assert "secret" not in repr(config)
    assert config.join_token is not None
    assert config.join_token.get_secret_value() == "pm1.secret"


def test_what_kubernetes_sets_for_a_service_called_mesh_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Service links must not keep a pod from starting."""
    for name in ("MESH_SERVICE_HOST", "MESH_SERVICE_PORT", "MESH_SERVICE_PORT_TLS", "MESH_PORT"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:7946")
    monkeypatch.setenv("MESH_PORT_7946_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("MESH_SEED_SERVICE_HOST", "10.0.0.1")
    assert MeshConfig().network == "default"


class TestErrors:
    """Each names the source, the key, the value and the fix."""

    def test_unknown_argument(self) -> None:
        """A misspelt argument is refused with the nearest key."""
        with pytest.raises(ConfigError, match=r"lisen from an argument \(did you mean listen\?\)"):
            MeshConfig.load(lisen="x")

    def test_unknown_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A misspelt variable is refused with the nearest one, spelt as a variable."""
        monkeypatch.setenv("MESH_NODEID", "n1")
        with pytest.raises(ConfigError, match=r"MESH_NODEID from the environment \(did you mean MESH_NODE_ID\?\)"):
            MeshConfig()

    def test_unknown_nested_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A misspelt key below a section is refused too."""
        monkeypatch.setenv("MESH_LINKS__KEEPALIVE_INTERVAL", "1")
        with pytest.raises(ConfigError, match=r"links\.keepalive_interval_s"):
            MeshConfig()

    def test_unknown_key_in_the_file(self, tmp_path: Path) -> None:
        """A misspelt key in the file is refused and the file named."""
        path = written(tmp_path, "[gossip]\nsuspicions = 3\n")
        with pytest.raises(ConfigError, match=r"gossip\.suspicions from .*mesh\.toml.*gossip\.suspicion_s"):
            MeshConfig.load(path)

    def test_key_in_the_wrong_section(self) -> None:
        """A key that exists elsewhere is suggested there."""
        with pytest.raises(ConfigError, match=r"did you mean links\.keepalive_interval_s"):
            MeshConfig.load(keepalive_interval_s=1)

    def test_nothing_resembles_it(self) -> None:
        """Without a near key, the known ones are listed."""
        with pytest.raises(ConfigError, match="the keys here are preset, network"):
            MeshConfig.load(zzzzzz=1)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"listen": "http://x"}, "listen = 'http://x'.*wss://"),
            ({"bootstrap": ["ok:1", "bad:port"]}, "bootstrap = 'bad:port'"),
            ({"node_id": "Not_Valid"}, "node_id = 'Not_Valid'.*lower-case"),
            ({"network": "-x"}, "network = '-x'"),
            ({"preset": "lann"}, "preset = 'lann'.*'local', 'lan' or 'wan'"),
            ({"links": {"keepalive_timeout_s": 1}}, "links from an argument.*twice"),
            ({"links": {"dial_timeout_s": float("nan")}}, "links.dial_timeout_s"),
            ({"gossip": {"suspicion_s": 0.5}}, "suspicion_refused_s must not exceed suspicion_s"),
            ({"messages": {"window_bytes": 2048}}, "window_bytes.*message_bytes_max"),
            ({"messages": {"message_bytes_max": 2 << 20}}, "messages.message_bytes_max = 2097152"),
            ({"mdns": "perhaps"}, "mdns = 'perhaps'"),
            ({"mdns": 2}, "mdns = 2 .*true or false"),
            ({"links": {"dial_timeout_s": "soon"}}, "links.dial_timeout_s = 'soon'.*number of seconds"),
            ({"links": {"dial_timeout_s": True}}, "links.dial_timeout_s = True.*number of seconds"),
            ({"links": {"links_max": 1.5}}, "links.links_max = 1.5.*whole number from 1 to 1000000"),
            ({"messages": {"window_bytes": True}}, "messages.window_bytes = True.*whole number of at least 1024"),
            ({"bootstrap": 7}, "bootstrap = 7.*must be a list"),
            ({"node_id": 7}, "node_id = 7.*must be text"),
            ({"data_dir": 7}, "data_dir = 7.*must be a path"),
            ({"links": 3}, "links = 3 from an argument: must be a section"),
        ],
    )
    def test_value_that_cannot_be_used(self, given: dict[str, Any], said: str) -> None:
        """A value out of its bounds, or against another, names both."""
        with pytest.raises(ConfigError, match=said):
            MeshConfig.load(**given)

    def test_bad_token_is_not_shown(self) -> None:
        """Even a wrong token is a secret: it may be a right one with a typing error."""
        with pytest.raises(ConfigError) as caught:
            MeshConfig.load(join_token=12345)
        assert "12345" not in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        """A file that is not there is an error, not an empty configuration."""
        with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
            MeshConfig.load(tmp_path / "nowhere.toml")

    @pytest.mark.parametrize("text", ["[links\n", "a = \n"])
    def test_file_that_is_not_toml(self, tmp_path: Path, text: str) -> None:
        """A broken file says where it broke."""
        with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
            MeshConfig.load(written(tmp_path, text))

    def test_section_given_as_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whole section in one variable is refused."""
        monkeypatch.setenv("MESH_LINKS", "fast")
        with pytest.raises(ConfigError, match="one variable per key"):
            MeshConfig()

    def test_several_errors_are_counted(self) -> None:
        """The first is explained, the others are counted."""
        with pytest.raises(ConfigError, match="and 1 more"):
            MeshConfig.load(node_id="A", network="B")

    def test_a_file_for_one_load_is_not_seen_by_the_next(self, tmp_path: Path) -> None:
        """Loading leaves nothing behind, also when it failed."""
        with pytest.raises(ConfigError):
            MeshConfig.load(written(tmp_path, 'network = "lab"\nnope = 1\n'))
        assert MeshConfig().network == "default"
