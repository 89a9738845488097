from tests.core import use_core_under_test

use_core_under_test()
