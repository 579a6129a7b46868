"""Types that the forms of several flows share: the server refuses other values before anything starts.

What a field means stands under Args of its flow, where Prefect reads it for the form.
"""

from typing import Annotated

from pydantic import Field

Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of a data set: no path, no option
Place = Annotated[str, Field(min_length=1)]
Why = Annotated[str, Field(max_length=2000)]
