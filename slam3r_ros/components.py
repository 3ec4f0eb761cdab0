# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Finds what a container is asked for: node classes by name, those of other packages included, and their arguments.

`container` says how a package registers its own.
"""

import importlib
from importlib.metadata import entry_points
from typing import Any

from ament_index_python.resources import get_resource, get_resources
from composition_interfaces.srv import LoadNode
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.parameter import Parameter

RESOURCE = 'slam3r_ros_components'  # type of the ament index
ENTRY_POINTS = 'slam3r_ros.components'


class ComponentError(RuntimeError):
    """A component is unknown, or cannot be made as asked for; the message names it and the reason."""


def components() -> dict[str, str]:
    """Return every registered component: `package::Class` to `module:Class`."""
    return _from_entry_points() | _from_index()


def component_class(name: str) -> type[Node]:
    """Return the class of a component.

    Args:
        name: As it is registered, or `module:Class`.

    Raises:
        ComponentError: The name is unknown, or its module cannot be imported.
    """
    place = _from_index().get(name) or _from_entry_points().get(name, name)  # those are slow to read
    module, separator, class_name = place.partition(':')
    if not separator or class_name.startswith(':'):
        names = ', '.join(sorted(components())) or 'none'
        raise ComponentError(f'component {name!r} is unknown; use module:Class or a registered one ({names})')
    try:
        found = getattr(importlib.import_module(module), class_name)
    except Exception as error:  # importing runs somebody else's code
        raise ComponentError(f'component {name!r} cannot be imported: {error or type(error).__name__}') from error
    if not (isinstance(found, type) and issubclass(found, Node)):
        raise ComponentError(f'component {name!r} is no rclpy node')
    return found


def node_arguments(request: LoadNode.Request) -> dict[str, Any]:
    """Return what a request asks of the constructor of a node.

    Of the extra arguments `forward_global_arguments` counts; `use_intra_process_comms` may be there, as for rclcpp, but
    nodes of one process hand each other objects in any case.

    Raises:
        ComponentError: The request makes no sense.
    """
    arguments = ['--ros-args']
    for rule in request.remap_rules:
        arguments += ['-r', rule]
    if request.node_name:
        arguments += ['-r', f'__node:={request.node_name}']
    if request.node_namespace:
        arguments += ['-r', f'__ns:={request.node_namespace}']
    try:
        parameters = [Parameter.from_parameter_msg(each) for each in request.parameters]
        extra = {each.name: Parameter.from_parameter_msg(each).value for each in request.extra_arguments}
        LoggingSeverity(request.log_level)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ComponentError(f'{request.plugin_name}: the request cannot be read: {error}') from error
    for name in ('use_intra_process_comms', 'forward_global_arguments'):
        if not isinstance(extra.get(name, False), bool):
            raise ComponentError(f'{request.plugin_name}: extra argument {name} must be a boolean, not {extra[name]!r}')
    return {
        'cli_args': arguments,
        'parameter_overrides': parameters,
        'use_global_arguments': extra.get('forward_global_arguments', False),
    }


def _from_index() -> dict[str, str]:
    lines = [line for package in get_resources(RESOURCE) for line in get_resource(RESOURCE, package)[0].splitlines()]
    return dict(line.strip().split(';', 1) for line in lines if ';' in line)


def _from_entry_points() -> dict[str, str]:
    return {each.name: each.value for each in entry_points(group=ENTRY_POINTS)}
