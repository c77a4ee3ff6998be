"""Speed, memory and exactness of the model beside a plain reference of it, in the same run."""
