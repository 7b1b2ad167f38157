"""One module per kind of source; the registry imports a module only when its scheme is asked for."""
