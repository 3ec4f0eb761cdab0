# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
# For -DCMAKE_PROJECT_INCLUDE: mends the include folders of generated Python targets, once the top
# folder has been read.  The ROS wheels' targets name folders of the machine they were made on: drop
# those that do not exist here.  Our own target names NumPy's, which CMake will not export when the
# environment lies inside the source tree: keep that to the build.
if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  function(_mend_python_includes)
    foreach(_kind IN ITEMS IMPORTED BUILDSYSTEM)
      get_property(_targets DIRECTORY "${CMAKE_SOURCE_DIR}" PROPERTY ${_kind}_TARGETS)
      list(FILTER _targets INCLUDE REGEX "__rosidl_generator_py$")
      foreach(_target IN LISTS _targets)
        get_target_property(_folders ${_target} INTERFACE_INCLUDE_DIRECTORIES)
        set(_mended "")
        foreach(_folder IN LISTS _folders)
          if(_kind STREQUAL "IMPORTED" AND EXISTS "${_folder}")
            list(APPEND _mended "${_folder}")
          elseif(_kind STREQUAL "BUILDSYSTEM" AND IS_ABSOLUTE "${_folder}")
            list(APPEND _mended "$<BUILD_INTERFACE:${_folder}>")
          elseif(_kind STREQUAL "BUILDSYSTEM")
            list(APPEND _mended "${_folder}")
          endif()
        endforeach()
        set_target_properties(${_target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_mended}")
      endforeach()
    endforeach()
  endfunction()
  cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL _mend_python_includes)
endif()
