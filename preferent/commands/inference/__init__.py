"""What loads models. What guards the imports of libraries is imported first."""

from preferent.models import guarded_imports as guarded_imports
