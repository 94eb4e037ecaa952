// Nothing of it is needed by the sources that are compiled here.
#pragma once
