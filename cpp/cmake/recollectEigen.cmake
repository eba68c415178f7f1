# Finds Eigen3::Eigen, both for the build of recollect and for projects that use an installed one.
#
# The PyPI package cmeel-eigen keeps its files in <site-packages>/cmeel.prefix, where find_package
# does not look by itself. Two kinds of site-packages are known here: those on CMAKE_PREFIX_PATH
# (pip's isolated builds, users who point at an environment) and the one that this file is installed
# in. Eigen3_DIR, as always, overrides the search.
set(_recollect_eigen_hints ${CMAKE_PREFIX_PATH} "${CMAKE_CURRENT_LIST_DIR}/../..")
list(TRANSFORM _recollect_eigen_hints APPEND "/cmeel.prefix")
find_package(Eigen3 3.4...<6 CONFIG QUIET HINTS ${_recollect_eigen_hints})
unset(_recollect_eigen_hints)
