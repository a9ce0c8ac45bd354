"""What real packets do under the rules that `kpx apply` wrote: both backends, both families."""
