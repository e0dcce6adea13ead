-- Which log this is, and from where to where it goes.
local epoch, stream, instead = identify()
if instead then return instead end
return {'log', epoch, stream.last, stream.first, stream.newest, stream.length, stream.added}
